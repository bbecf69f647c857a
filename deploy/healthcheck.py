#!/usr/bin/env python3
"""Ask the service in this container how it is: healthcheck.py livez|readyz. Exits 0 where it answers 200, else 1.

The port is that of REVERSAL_HTTP_PORT. Only Python's own library, since it is asked every few seconds.
"""

from __future__ import annotations

import http.client
import os
import sys

ANSWER_SECONDS = 3


def main(path: str) -> int:
    """Prints what the service says, which `docker inspect` shows; returns the exit code."""
    service = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("REVERSAL_HTTP_PORT", "8080")), timeout=ANSWER_SECONDS
    )
    try:
        service.request("GET", f"/{path}")
        answer = service.getresponse()
        said, healthy = answer.read().decode(), answer.status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException) as error:
        said, healthy = f"no answer: {error}", False
    sys.stdout.write(said.rstrip() + "\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
