"""/livez, /readyz and /metrics on one port, served from a thread, so that they answer also when the loop does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.metrics import Metrics

BEAT_SECONDS = 0.5  # the loop beats this often
DEAF_SECONDS = 10.0  # a loop that has not beaten for so long is not live


@dataclass(slots=True)
class Health:
    """What the process knows of itself. `reasons`: why it is not ready, by part; empty: ready."""

    reasons: dict[str, str] = field(default_factory=lambda: {"service": "is starting"})
    beat: float = field(default_factory=time.monotonic)

    def live(self) -> bool:
        """Whether the loop beats."""
        return time.monotonic() - self.beat < DEAF_SECONDS

    def say(self, part: str, reason: str | None) -> None:
        """Note why a part is not ready, or that it is."""
        if reason is None:
            self.reasons.pop(part, None)
        else:
            self.reasons[part] = reason


class _Quiet(WSGIRequestHandler):
    timeout = 5

    def log_message(self, *_: Any) -> None:
        """Probes are not logged."""


def serve(host: str, port: int, health: Health, metrics: Metrics) -> Callable[[], None]:
    """Start to answer; returns what stops it. Raises OSError where the port is taken."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        content_type = "text/plain; charset=utf-8"
        if path == "/metrics":
            status, body, content_type = "200 OK", generate_latest(metrics.registry), CONTENT_TYPE_LATEST
        elif path == "/livez":
            alive = health.live()
            status, body = ("200 OK", b"live\n") if alive else ("503 Service Unavailable", b"the loop does not beat\n")
        elif path == "/readyz":
            reasons = dict(health.reasons)
            status = "503 Service Unavailable" if reasons else "200 OK"
            body = "".join(f"{part}: {reason}\n" for part, reason in sorted(reasons.items())).encode() or b"ready\n"
        else:
            status, body = "404 Not Found", b"there are /livez, /readyz and /metrics\n"
        start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]

    server = make_server(host, port, answer, server_class=WSGIServer, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="health", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
