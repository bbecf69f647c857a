"""A test aid: the process kills itself (SIGKILL) at a named point, as if its machine died there, or freezes itself.

Armed by REVERSAL_TEST_FAILPOINT=NAME:COUNT, the COUNTth time that NAME is reached; NAME:COUNT:freeze stops it there
(SIGSTOP) until somebody sends SIGCONT. Never armed in production.
"""

from __future__ import annotations

import os
import signal

POINTS = {
    "owned": "a lane's epoch is raised, its outbox not yet published",
    "drained": "the outbox of a lane just owned is published, not yet cleared",
    "locked": "a batch's transaction has locked its lane and its customers",
    "loaded": "all is loaded under lock",
    "decided": "all is decided, nothing written",
    "written": "all is written, not committed",
    "committed": "all is committed, nothing published",
    "published": "all is acknowledged, the outbox not cleared",
    "revoked": "the group takes partitions back, their batches not yet finished",
}
SIGNALS = {"": signal.SIGKILL, "freeze": signal.SIGSTOP}

_armed: dict[str, tuple[int, signal.Signals]] = {}


def arm(text: str | None) -> None:
    """Arm `NAME:COUNT`, `NAME:COUNT:freeze` or `NAME`; raises ValueError where there is no such point."""
    _armed.clear()
    if text:
        name, count, end, *rest = [*text.split(":"), "", ""]
        if name not in POINTS or not (count or "1").isdigit() or end not in SIGNALS or any(rest):
            raise ValueError(f"no failpoint {text!r}; there are {', '.join(POINTS)}, each with :COUNT or :COUNT:freeze")
        _armed[name] = int(count or 1), SIGNALS[end]


def reach(name: str) -> None:
    """Note that a point is reached; costs a look into an empty dict unless armed."""
    if name in _armed:
        count, end = _armed.pop(name)
        if count > 1:
            _armed[name] = count - 1, end
        else:
            os.kill(os.getpid(), end)
