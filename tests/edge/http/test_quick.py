"""The short way: a head that is remembered says what it would say if it were read, and answers are the same bytes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.http.framing import TARGET_BYTES
from edge.http.intake import _batch_answer, _single_answer
from edge.http.quick import QuickHead, success
from edge.http.wire import parse_head
from edge.judging import Result

BEFORE = b"POST /ingest HTTP/1.1\r\nHost: a\r\nX-API-Key: k\r\n"


def head_of(raw: bytes) -> QuickHead:
    return QuickHead(raw, parse_head(raw, TARGET_BYTES))


def test_head_with_another_length_is_the_same_head() -> None:
    head = head_of(BEFORE + b"content-length: 12\r\nAccept: */*\r\n\r\n")
    assert head.length_in(BEFORE + b"content-length: 12\r\nAccept: */*\r\n\r\n") == 12
    assert head.length_in(BEFORE + b"content-length: 65535\r\nAccept: */*\r\n\r\n") == 65_535


@pytest.mark.parametrize(
    "raw",
    [
        BEFORE + b"Content-Length: 12\r\nAccept: */*\r\n\r\n",  # another spelling: parsed again, that is all
        BEFORE + b"content-length: 12\r\nAccept: */*\r\nX: y\r\n\r\n",
        BEFORE + b"content-length: +12\r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: 012\r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: 1 2\r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: 1_2\r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: \r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: 12\r\ncontent-length: 12\r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: 1\r\nAccept: */*\r\n\r\ncontent-length: 2\r\nAccept: */*\r\n\r\n",
        BEFORE + b"content-length: 99999999\r\nAccept: */*\r\n\r\n",
        BEFORE + "content-length: ٣\r\nAccept: */*\r\n\r\n".encode(),
        BEFORE.replace(b"k", b"j") + b"content-length: 12\r\nAccept: */*\r\n\r\n",
        b"\r\n" + BEFORE + b"content-length: 12\r\nAccept: */*\r\n\r\n",
        b"",
    ],
)
def test_head_that_differs_in_anything_else_is_read_anew(raw: bytes) -> None:
    assert head_of(BEFORE + b"content-length: 12\r\nAccept: */*\r\n\r\n").length_in(raw) == -1


@given(st.integers(0, 10**8), st.sampled_from([b"", b"Accept: */*\r\n", b"X: content-length: 3\r\n"]))
def test_length_that_is_read_is_the_length_that_was_sent(length: int, after: bytes) -> None:
    head = head_of(BEFORE + b"Content-Length: 1\r\n" + after + b"\r\n")
    raw = BEFORE + b"Content-Length: %d\r\n" % length + after + b"\r\n"
    assert head.length_in(raw) in (-1, length)
    assert head.length_in(raw) == length or not 0 < length < 10**7


def test_head_whose_length_is_written_in_an_odd_way_is_never_remembered() -> None:
    for odd in (b"007", b"00", b"12345678"):
        raw = BEFORE + b"Content-Length: " + odd + b"\r\n\r\n"
        assert head_of(raw).length_in(raw) == -1


@given(st.lists(st.text(max_size=300), min_size=1, max_size=3))
def test_answer_to_what_was_accepted_is_the_one_that_intake_words(ids: list[str]) -> None:
    result: Any = Result([], ids)
    assert success("ingest", ids) == _single_answer(result).encode()
    assert success("batch", ids) == _batch_answer(result, verbose=False).encode()
    assert orjson.loads(success("ingest", ids))["eventId"] == ids[0][:256]
