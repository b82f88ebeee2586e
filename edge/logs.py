"""Logs: one set-up for structlog and the standard library, so that Tornado's lines and ours look the same.

Lines go to stderr: readable on a terminal, one JSON object a line otherwise. Whatever a sender can put into a line
(paths, header values, names of fields) is cut, and its control characters are escaped, so that no value can start a
line of its own, move a cursor or reverse the reading direction. Secrets are masked by name and by shape.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

__all__ = ["MASK", "RateLimited", "configure", "escape", "mask"]

Format = Literal["auto", "json", "text"]
EventDict = MutableMapping[str, Any]

MASK: Final = "***"

VALUE_CHARS: Final = 256
EVENT_CHARS: Final = 1024
"""Longer than a value: Tornado writes the whole request into the sentence."""
EXCEPTION_CHARS: Final = 16384
MAX_ITEMS: Final = 32
MAX_DEPTH: Final = 4

# C0, DEL and C1 controls, soft hyphen, zero-width and bidirectional marks, line and paragraph separators, the byte
# order mark, interlinear marks, lone surrogates and the invisible tag characters.
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_CONTROL: Final = re.compile(f"[{_HIDDEN}]")
_CONTROL_KEEPING_LINES: Final = re.compile(f"(?![\n\t])[{_HIDDEN}]")

_SECRET_NAME: Final = re.compile(
    r"^(?:proxy[-_])?authorization$|cookie$|(?:^|[-_])(?:api[-_]?key|token|password|passwd|secret|credentials?)$",
    re.IGNORECASE,
)
_SECRET_SHAPES: Final = (
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{4,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"([?&;](?:api_?key|key|token|password|secret|signature)=)[^&;\s'\"]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(\w://)[^/@\s'\"]+@"), rf"\1{MASK}@"),
    (re.compile(r"\bgw_[\w-]{16,}"), f"gw_{MASK}"),
)
_MAY_HOLD_SECRET: Final = re.compile(r"bearer|basic|=|://|gw_", re.IGNORECASE)


def escape(text: str, *, keep_lines: bool = False) -> str:
    r"""Return `text` with every character that does not show itself written as ``\x1b`` or ``\u2028``."""
    pattern = _CONTROL_KEEPING_LINES if keep_lines else _CONTROL
    return pattern.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def mask(text: str) -> str:
    """Return `text` without what looks like a secret: credentials of headers and URLs, generated keys."""
    if _MAY_HOLD_SECRET.search(text):
        for pattern, replacement in _SECRET_SHAPES:
            text = pattern.sub(replacement, text)
    return text


def is_secret_name(name: str) -> bool:
    """Say whether a field of this name holds a secret, so that its value is never shown."""
    return _SECRET_NAME.search(name) is not None


def _clean(value: Any, depth: int = 0) -> Any:
    """Return `value` as something that JSON can hold, bounded in length, width and depth."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _cut(str(value), VALUE_CHARS)
    if isinstance(value, str):
        return _cut(value, VALUE_CHARS)
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            pairs = list(value.items())[:MAX_ITEMS]
            return {_cut(str(name), VALUE_CHARS): _field(str(name), item, depth + 1) for name, item in pairs}
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    if isinstance(value, bytes):
        return _cut(value[: VALUE_CHARS + 1].decode("utf-8", "backslashreplace"), VALUE_CHARS)
    return _cut(str(value), VALUE_CHARS)


def _field(name: str, value: Any, depth: int = 0) -> Any:
    if is_secret_name(name) and value not in (None, "", True, False):
        return MASK
    return _clean(value, depth)


def _cut(text: str, limit: int, *, keep_lines: bool = False) -> str:
    # Masked before it is cut: half a secret would no longer look like one. The bound keeps the regular expressions
    # off text that nobody will see.
    text = mask(text[: limit * 4])
    more = len(text) - limit
    text = escape(text[:limit], keep_lines=keep_lines)
    return text if more <= 0 else f"{text}…"


def _sanitize(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """Put the fields in reading order and make every value harmless."""
    exception = event_dict.pop("exception", None)
    stack = event_dict.pop("stack", None)
    head: dict[str, Any] = {}
    for name in ("timestamp", "level", "logger"):
        if name in event_dict:
            head[name] = event_dict.pop(name)
    head["event"] = _cut(str(event_dict.pop("event", "")), EVENT_CHARS)
    for name, value in event_dict.items():
        head[_cut(str(name), VALUE_CHARS)] = _field(str(name), value)
    for name, text in (("exception", exception), ("stack", stack)):
        if text:
            # The end of a traceback names the error, so the beginning is what may go.
            head[name] = _cut(str(text)[-EXCEPTION_CHARS:], EXCEPTION_CHARS, keep_lines=True)
    return head


def _drop_rendered(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    """Forget what another handler's formatter wrote on the record."""
    event_dict.pop("message", None)
    event_dict.pop("asctime", None)
    return event_dict


_process_name = ""


def name_process(name: str) -> None:
    """Have every line of this process carry a name: of several processes that write to one stream."""
    global _process_name  # noqa: PLW0603 - as much of the whole process as the stream is
    _process_name = name


def _add_process(_logger: object, _method: str, event_dict: EventDict) -> EventDict:
    if _process_name:
        event_dict["process"] = _process_name
    return event_dict


def _to_json(_logger: object, _method: str, event_dict: EventDict) -> str:
    return orjson.dumps(event_dict, option=orjson.OPT_NON_STR_KEYS, default=str).decode()


def _formatter(*, readable: bool, colors: bool) -> logging.Formatter:
    if readable:
        render: Any = structlog.dev.ConsoleRenderer(
            colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
    else:
        render = _to_json
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), _drop_rendered],
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_process,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _sanitize,
            render,
        ],
    )


@dataclass(slots=True)
class _Window:
    ends: float
    seen: int
    last: logging.LogRecord


class RateLimited(logging.Filter):
    """Lets a text through `limit` times in `window_secs`, then counts; the count is told in one summary line.

    What counts as the same is logger, level and the sentence before its data is filled in. DEBUG is not limited: who
    turns it on wants every line. `emit` is given the summary, once the window is over and any further line arrives.
    """

    MAX_TEXTS: Final = 1024

    def __init__(
        self,
        emit: Callable[[logging.LogRecord], object],
        *,
        limit: int = 10,
        window_secs: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._emit = emit
        self._limit = limit
        self._window_secs = window_secs
        self._clock = clock
        self._windows: dict[tuple[str, int, str], _Window] = {}
        self._next_sweep = 0.0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether `record` is written; called by the handler, in any thread."""
        if record.levelno <= logging.DEBUG:
            return True
        now = self._clock()
        with self._lock:
            over = self._sweep(now) if now >= self._next_sweep else []
            passes = self._count(record, now)
        for window in over:
            self._emit(self._summary(window))
        return passes

    def flush(self) -> None:
        """Tell what was held back so far; called when logging ends."""
        with self._lock:
            held = [window for window in self._windows.values() if window.seen > self._limit]
            self._windows.clear()
        for window in held:
            self._emit(self._summary(window))

    def _count(self, record: logging.LogRecord, now: float) -> bool:
        text = record.msg.get("event", "") if isinstance(record.msg, dict) else record.msg
        key = (record.name, record.levelno, str(text)[:VALUE_CHARS])
        window = self._windows.get(key)
        if window is None:
            # Sentences with data in them would fill the table: beyond its size they share one entry.
            if len(self._windows) >= self.MAX_TEXTS:
                key = (record.name, record.levelno, "")
            window = self._windows.setdefault(key, _Window(now + self._window_secs, 0, record))
            self._next_sweep = min(self._next_sweep, window.ends) if len(self._windows) > 1 else window.ends
        window.seen += 1
        if window.seen > self._limit:
            window.last = record
            return False
        return True

    def _sweep(self, now: float) -> list[_Window]:
        ended = {key: window for key, window in self._windows.items() if window.ends <= now}
        for key in ended:
            del self._windows[key]
        self._next_sweep = min((window.ends for window in self._windows.values()), default=now + self._window_secs)
        return [window for window in ended.values() if window.seen > self._limit]

    def _summary(self, window: _Window) -> logging.LogRecord:
        last = window.last
        text = last.msg.get("event", "") if isinstance(last.msg, dict) else last.msg
        record = logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, "lines held back", None, None)
        record.text = str(text)
        record.held_back_lines = window.seen - self._limit
        record.window_secs = self._window_secs
        return record


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler of this module; `configure` finds it again by its class."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.limiter = RateLimited(self._emit_locked)
        self.addFilter(self.limiter)

    def _emit_locked(self, record: logging.LogRecord) -> None:
        self.acquire()
        try:
            self.emit(record)
        finally:
            self.release()

    def close(self) -> None:
        self.limiter.flush()
        super().close()


def configure(level: str = "info", format: Format = "auto", *, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stderr) from `level` up. May be called again, for example after a reload.

    `format`: ``json`` is one object a line, ``text`` is readable, ``auto`` is readable when `stream` is a terminal.
    Fields of the request (`request_id`, `traceparent`) come from `structlog.contextvars`, for Tornado's lines too.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    handler = _Handler(stream)
    colors = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    handler.setFormatter(_formatter(readable=format == "text" or (format == "auto" and terminal), colors=colors))

    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())

    # The gateway writes its own access line, at DEBUG; Tornado's would be a WARNING for every 4xx a sender causes.
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
    logging.captureWarnings(capture=True)

    # Everything that depends on level and format lies in the handler, so loggers may be cached.
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
