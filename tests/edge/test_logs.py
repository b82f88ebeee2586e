import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog

from edge import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream(expect_log: list[str]) -> Iterator[io.StringIO]:
    """A stream for `logs.configure`; afterwards logging is as the other tests want it."""
    expect_log.append("")
    yield io.StringIO()
    structlog.contextvars.clear_contextvars()
    logs.configure("debug", "json")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_time_level_logger_event_and_fields_in_that_order(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger("edge.spool").warning("The spool is full.", path="/var/spool", free_bytes=0)
    [line] = lines(stream)
    assert list(line) == ["timestamp", "level", "logger", "event", "path", "free_bytes"]
    assert line["timestamp"].endswith("Z")
    assert {**line, "timestamp": ""} == {
        "timestamp": "",
        "level": "warning",
        "logger": "edge.spool",
        "event": "The spool is full.",
        "path": "/var/spool",
        "free_bytes": 0,
    }


def test_standard_library_lines_look_the_same(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    logging.getLogger("tornado.general").warning("Malformed HTTP message from %s", "10.0.0.1", extra={"route": "x"})
    [line] = lines(stream)
    assert list(line) == ["timestamp", "level", "logger", "event", "route"]
    assert line["event"] == "Malformed HTTP message from 10.0.0.1"
    assert line["logger"] == "tornado.general"


def test_level_holds_back_what_is_below(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream=stream)
    structlog.get_logger("edge").info("not this")
    logging.getLogger("edge.x").info("nor this")
    structlog.get_logger("edge").error("this")
    assert [line["event"] for line in lines(stream)] == ["this"]


def test_configure_again_replaces_level_and_format(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream=stream)
    log = structlog.get_logger("edge")
    log.info("not this")
    logs.configure("info", "text", stream=stream)
    log.info("once")
    assert stream.getvalue().count("once") == 1
    assert "not this" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_format_auto_is_readable_on_a_terminal_only(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    logs.configure("info", "auto", stream=terminal)
    structlog.get_logger("edge").info("ready", port=4000)
    assert "\x1b[" in terminal.getvalue()
    logs.configure("info", "auto", stream=stream)
    structlog.get_logger("edge").info("ready", port=4000)
    assert lines(stream)[0]["port"] == 4000
    logs.configure("info", "text", stream=stream)
    structlog.get_logger("edge").info("ready", port=4000)
    last = stream.getvalue().splitlines()[-1]
    assert "\x1b" not in last
    assert "port=4000" in last


def test_request_context_is_on_every_line_of_the_request(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r-1", traceparent="00-ab-cd-01"):
        structlog.get_logger("edge").info("ours")
        logging.getLogger("tornado.application").error("theirs")
    structlog.get_logger("edge").info("after")
    assert [line.get("request_id") for line in lines(stream)] == ["r-1", "r-1", None]
    assert lines(stream)[1]["traceparent"] == "00-ab-cd-01"


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize(
    "nasty", ["\x1b[2J", "a\nb", "\r", "\u2028", "\u202eabc", "\u2066", "\x9b31m", "\x00", "\ud800", "\u200b", "\u061c"]
)
def test_characters_that_do_not_show_themselves_are_escaped(stream: io.StringIO, format: Any, nasty: str) -> None:
    logs.configure("info", format, stream=stream)
    structlog.get_logger("edge").warning(f"path {nasty}", path=nasty, nested={nasty: [nasty]})
    logging.getLogger("tornado.general").warning("path %s", nasty)
    written = stream.getvalue()
    assert len(written.splitlines()) == 2
    assert not [char for char in nasty if not char.isprintable() and char in written.replace("\n", "")]
    if format == "text":
        assert logs.escape(nasty) in written
    else:
        assert [line["path"] for line in lines(stream)[:1]] == [logs.escape(nasty)]
        assert lines(stream)[1]["event"] == f"path {logs.escape(nasty)}"


def test_values_are_cut(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger("edge").info(
        "x" * 5000, value="y" * 257, short="z" * 256, many=list(range(1000)), raw=b"\xff" * 999
    )
    [line] = lines(stream)
    assert line["event"] == "x" * 1024 + "…"
    assert line["value"] == "y" * 256 + "…"
    assert line["short"] == "z" * 256
    assert len(line["many"]) == 32
    assert len(line["raw"]) == 257


def test_values_of_any_type_are_written(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    structlog.get_logger("edge").info("odd", big=2**70, exact=2**63, path=io, nan=float("nan"), deep=deep, s={1, 2})
    [line] = lines(stream)
    assert line["big"] == str(2**70)
    assert line["exact"] == 2**63
    assert line["nan"] is None
    assert line["s"] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "secret"),
    [
        ({"authorization": "Bearer abc123def"}, "abc123def"),
        ({"headers": {"X-API-Key": "opensesame"}}, "opensesame"),
        ({"crm_token": "opensesame"}, "opensesame"),
        ({"cookie": "sid=opensesame"}, "opensesame"),
        ({"error": "refused: Authorization: Bearer abc.def-123"}, "abc.def-123"),
        ({"url": "https://user:opensesame@crm.example.org/hook"}, "opensesame"),
        ({"uri": "/ingest?v=1&api_key=opensesame&x=1"}, "opensesame"),
        ({"text": "key gw_Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MGFi was used"}, "Zm9v"),
    ],
)
def test_secrets_are_masked_by_name_and_by_shape(stream: io.StringIO, fields: dict[str, Any], secret: str) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger("edge").warning("refused", **fields)
    logging.getLogger("tornado.general").warning("refused %s", fields)
    first = stream.getvalue().splitlines()[0]
    assert secret not in first
    assert "***" in first


def test_key_ids_and_counts_are_not_masked(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    structlog.get_logger("edge").info("ok", key="web", key_id="web", tokens=3, token="")
    [line] = lines(stream)
    assert (line["key"], line["key_id"], line["tokens"], line["token"]) == ("web", "web", 3, "")


@pytest.mark.parametrize("format", ["json", "text"])
def test_tracebacks_are_kept_and_made_harmless(stream: io.StringIO, format: Any) -> None:
    logs.configure("info", format, stream=stream)
    try:
        int("boom \x1b[2J Bearer abcdef123")
    except ValueError:
        structlog.get_logger("edge").exception("A component raised.", component="geo")
    written = stream.getvalue()
    assert "ValueError: invalid literal" in written
    assert "test_logs.py" in written
    assert "\x1b" not in written
    assert "abcdef123" not in written
    if format == "json":
        assert lines(stream)[0]["exception"].startswith("Traceback")


def test_tornado_access_lines_are_off(stream: io.StringIO) -> None:
    logs.configure("debug", "json", stream=stream)
    logging.getLogger("tornado.access").warning("404 GET /x")
    logging.getLogger("tornado.access").error("500 GET /x")
    assert stream.getvalue() == ""


def test_python_warnings_become_lines() -> None:
    code = "from edge import logs; import warnings; logs.configure(); warnings.warn('old \\x1b thing', UserWarning)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [line] = [orjson.loads(line) for line in done.stderr.splitlines()]
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "old \\x1b thing" in line["event"]


def test_repeated_text_is_held_back_and_summed_up_after_a_minute() -> None:
    now = 0.0
    written: list[logging.LogRecord] = []
    limiter = logs.RateLimited(written.append, clock=lambda: now)

    def passes(text: object, level: int = logging.WARNING) -> bool:
        return limiter.filter(logging.LogRecord("edge", level, "", 0, text, None, None))

    assert [passes("disk slow") for _ in range(25)] == [True] * 10 + [False] * 15
    assert passes({"event": "another", "n": 1})
    assert all(passes("seen", logging.DEBUG) for _ in range(100))
    assert written == []
    now = 61.0
    assert passes("anything")
    [summary] = written
    assert (summary.getMessage(), summary.__dict__["text"], summary.__dict__["held_back_lines"]) == (
        "lines held back",
        "disk slow",
        15,
    )
    assert summary.levelno == logging.WARNING
    assert passes("disk slow")


def test_limiter_stays_small_whatever_the_texts() -> None:
    limiter = logs.RateLimited(lambda _: None, clock=lambda: 0.0)
    passed = sum(limiter.filter(logging.LogRecord("edge", 30, "", 0, f"text {n}", None, None)) for n in range(20_000))
    assert len(limiter._windows) <= limiter.MAX_TEXTS + 1
    assert passed == limiter.MAX_TEXTS + 10


def test_handler_limits_and_tells_what_it_held_back_when_it_closes(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    log = structlog.get_logger("edge.delivery")
    for attempt in range(30):
        log.warning("The target refused the batch.", sink="crm", attempt=attempt)
    assert len(lines(stream)) == 10
    logs.configure("info", "json", stream=io.StringIO())
    summary = lines(stream)[-1]
    assert summary["event"] == "lines held back"
    assert (summary["text"], summary["held_back_lines"]) == ("The target refused the batch.", 20)
    assert summary["logger"] == "edge.delivery"


def test_lines_go_to_stderr_in_a_process_of_its_own() -> None:
    code = "from edge import logs; import structlog; logs.configure(); structlog.get_logger('edge').info('up', port=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert orjson.loads(done.stderr)["event"] == "up"
