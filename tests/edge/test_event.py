from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.event import pack, unpack
from edge.lines import count_lines, split_lines


@given(st.lists(st.sampled_from([b"", b"\n", b"\r", b"\r\n", b"a", b'{"a":1}', b"\x85", b"\x0b\x0c"])).map(b"".join))
def test_lines_are_what_split_makes(text: bytes) -> None:
    assert split_lines(text) == text.split(b"\n")
    assert count_lines(text) == len(text.split(b"\n"))


@given(st.lists(st.dictionaries(st.text(), st.text()).map(orjson.dumps), min_size=1, max_size=5))
def test_unpack_returns_what_was_packed(lines: list[bytes]) -> None:
    assert unpack(pack({"key": "a"}, lines)) == ({"key": "a"}, lines)


@pytest.mark.parametrize("payload", [b"", b"\n", b"[]\n{}", b'"a"', b"{"])
def test_what_pack_did_not_make_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        unpack(payload)


def test_frame_without_events_has_no_lines() -> None:
    assert unpack(pack({"action": "none"}, [])) == ({"action": "none"}, [])
