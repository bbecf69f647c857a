#!/usr/bin/env python3
"""Ask the service in this container how it is: healthcheck.py livez|readyz. Exits 0 where it says 200, else 1.

The port is that of REVERSAL_HTTP_PORT. Only Python's own library, so that asking every few seconds costs little.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

ANSWER_SECONDS = 3


def main(path: str) -> int:
    """Prints what the service says; `docker inspect` shows it."""
    port = os.environ.get("REVERSAL_HTTP_PORT", "8080")
    # Whatever proxy the environment names, it is not between this process and its own container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/{path}", timeout=ANSWER_SECONDS) as answer:
            said, healthy = answer.read(), True
    except urllib.error.HTTPError as error:
        said, healthy = error.read(), False
    except OSError as error:
        said, healthy = str(error).encode(), False
    sys.stdout.buffer.write(said.rstrip() + b"\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
