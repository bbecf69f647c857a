"""Logs: structlog, JSON unless on a terminal. Event names are an interface: they are listed here and stay."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

EVENTS = {
    "service.started": "the process consumes; its version, group and topics",
    "service.stopping": "a signal came; what is under way is finished",
    "service.stopped": "everything is closed",
    "service.waiting": "a server does not answer; which, since when, what it said",
    "service.test_clock": "REVERSAL_TEST_CLOCK freezes the decision moment: never in production",
    "service.broken": "the process ends because something hangs or failed for good",
    "topic.unfit": "a topic's max.message.bytes can stop a lane; which, why, and what it should be",
    "partitions.assigned": "the group gave this process partitions",
    "partitions.revoked": "the group took partitions back",
    "lane.owned": "this process owns a lane: its epoch, where it goes on, how much its outbox still held",
    "lane.lost": "another process owns a lane now",
    "lane.freed": "the database session of a lane's earlier owner, which is frozen, was ended",
    "lane.stopped": "a lane cannot go on without a person; why, and the command that mends it",
    "lane.doubt": "a commit or a publication is in doubt; the lane starts again from what is stored",
    "batch.decided": "one batch: records, outcomes by code, seconds by stage, lag",
    "record.raised": "deciding one record raised; the fault behind its 804",
    "refusals.forgotten": "refusals older than refusal_days were deleted",
    "producer.replaced": "a producer was given up after a failure",
    "library.said": "a library's own warning: its logger and message",
}

QUIET_SECONDS = 10.0  # a library's line is repeated at most this often

EMAIL = re.compile(r"[^\s\"'=:,;<>()\[\]]+@[^\s\"'=:,;<>()\[\]]+")
# A number may stand right after a colon (`phone:91234567`), but not after one within a time or an address (`12:30:05.1234`).
# An address of a server with its port, as 10.0.0.7:9092 or ('10.0.0.7', 9092), is none.
PHONE = re.compile(
    r"(?:(?<![\w.:-])|(?<=:)(?<![\d:]:))(?!(?:\d{1,3}\.){3}\d{1,3}(?::|', )\d)\+?\(?\d[\d\s().-]{5,}\d(?![\w:-])"
)
PERSONAL = {"identifier", "value", "phone", "email", "lookup"}


def mask(text: str) -> str:
    """A text without e-mail addresses and telephone numbers."""
    return PHONE.sub("[phone]", EMAIL.sub("[email]", text))


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: "[personal]" if key in PERSONAL else _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask whatever names a person, also within texts of exceptions."""
    kept = ("event", "level", "timestamp", "topic", "lane", "reason")
    return {
        key: item if key in kept else "[personal]" if key in PERSONAL else _masked(item) for key, item in event.items()
    }


def said(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A library's line, whose text is no event of ours."""
    record = event["_record"]
    return {**event, "event": "library.said", "logger": record.name, "message": str(event["event"])}


class Seldom(logging.Filter):
    """Lets a library say the same thing once in QUIET_SECONDS: aiokafka says it many times a second while Kafka is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this one is said. Lines of one place in a library are the same thing, whatever their numbers."""
        now = time.monotonic()
        key = (record.name, str(record.msg))
        if now - self._said.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        if len(self._said) > 1000:  # texts that are made anew each time must not fill the memory
            self._said.clear()
        self._said[key] = now
        return True


def set_up(level: str = "info", style: Literal["auto", "json", "console"] = "auto") -> None:
    """Configure structlog, and send the libraries' own warnings the same way."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[said, *shared], processor=renderer))
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)


def words(error: BaseException) -> str:
    """An error in one bounded line, without what names a person."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return mask(f"{type(error).__name__}: {first}{notes}")[:300]


log = structlog.get_logger()
