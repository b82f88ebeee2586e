from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.validation import is_datetime

VALID = [
    "2025-09-17T10:00:00Z",
    "2025-09-17T10:00:00",
    "2025-09-17T10:00",
    "2025-09-17T10:00Z",
    "2025-09-17t10:00:00z",
    "2025-09-17T10:00:00+02:00",
    "2025-09-17T10:00:00-02:00",
    "2025-09-17T10:00:00+0200",
    "2025-09-17T10:00:00+02",
    "2025-09-17T10:00:00-00:00",
    "2025-09-17T10:00:00+23:59",
    "2025-09-17T10:00:00.1Z",
    "2025-09-17T10:00:00.123Z",
    "2025-09-17T10:00:00,123Z",
    "2025-09-17T10:00:00.123456Z",
    "2025-09-17T10:00:00.123456789Z",
    "2025-09-17T10:00:00.123456789012345678901234567890+02:00",
    "2025-09-17T10:00:00." + "1" * 43 + "Z",
    "20250917T100000Z",
    "20250917T100000",
    "20250917T1000Z",
    "20250917t100000.5+0200",
    "20250917T100000+02:00",
    "2024-02-29T00:00:00Z",
    "2000-02-29T00:00:00Z",
    "2025-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "0001-01-01T02:00:00+02:00",
]
INVALID = [
    "",
    " ",
    "yesterday",
    "1758103200",
    "2025-09-17",
    "20250917",
    "10:00:00",
    "T10:00:00Z",
    "2025-09-17T",
    "2025-09-17T10",
    "2025-09-17T10Z",
    "2025-09-17 10:00:00Z",
    "2025-09-17_10:00:00Z",
    " 2025-09-17T10:00:00Z",
    "2025-09-17T10:00:00Z ",
    "2025-09-17T10:00:00Z\n",
    "2025-09-17T10:00:00 Z",
    "2025-09-17T10:00:00ZZ",
    "2025-09-17T10:00:00Z+02:00",
    "2025-09-17T10:00:00UTC",
    "2025-09-17T10:00:00+2",
    "2025-09-17T10:00:00+2:00",
    "2025-09-17T10:00:00+02:0",
    "2025-09-17T10:00:00+24:00",
    "2025-09-17T10:00:00+02:60",
    "2025-09-17T10:00:00+",
    "2025-09-17T10:00:00\u221202:00",
    "2025-09-17T10:00:00.Z",
    "2025-09-17T10:00:00.",
    "2025-09-17T10:00.5Z",
    "2025-09-17T10:00:00.1.2Z",
    "2025-09-17T24:00:00Z",
    "2025-09-17T25:00:00Z",
    "2025-09-17T10:60:00Z",
    "2025-09-17T23:59:60Z",
    "2016-12-31T23:59:60Z",
    "2025-09-17T10:00:61Z",
    "2025-13-01T10:00:00Z",
    "2025-00-01T10:00:00Z",
    "2025-09-31T10:00:00Z",
    "2025-09-00T10:00:00Z",
    "2025-02-29T10:00:00Z",
    "1900-02-29T10:00:00Z",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "+2025-09-17T10:00:00Z",
    "-2025-09-17T10:00:00Z",
    "0001-01-01T00:00:00+02:00",
    "9999-12-31T23:59:59-02:00",
    "25-09-17T10:00:00Z",
    "2025-9-17T10:00:00Z",
    "2025-09-17T1:00:00Z",
    "2025-W38-3T10:00:00Z",
    "2025-260T10:00:00Z",
    "2025-0917T10:00:00Z",
    "202509-17T10:00:00Z",
    "2025-09-17T100000Z",
    "20250917T10:00:00Z",
    "2025/09/17T10:00:00Z",
    "2025-09-17T10.00.00Z",
    "\u0662\u0660\u0662\u0665-09-17T10:00:00Z",
    "\uff12\uff10\uff12\uff15-09-17T10:00:00Z",
    "2025-09-17T10:00:00Z\x00",
    "2025-09-17T10:00:00." + "1" * 44 + "Z",
    "Wed, 17 Sep 2025 10:00:00 GMT",
]


@pytest.mark.parametrize("text", VALID)
def test_datetime_takes(text: str) -> None:
    assert is_datetime(text)


@pytest.mark.parametrize("text", INVALID)
def test_datetime_refuses(text: str) -> None:
    assert not is_datetime(text)


MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))  # noqa: DTZ001 - the offset is drawn apart
OFFSETS = st.none() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(MOMENTS, OFFSETS, st.sampled_from(["auto", "minutes", "seconds", "milliseconds"]))
@settings(deadline=None)
def test_datetime_takes_what_python_writes(moment: datetime, offset: timezone | None, timespec: str) -> None:
    assert is_datetime(moment.replace(tzinfo=offset).isoformat(timespec=timespec))


@given(st.text(alphabet="0123456789-:.,+TtZzW \n", max_size=40) | st.text(max_size=40))
@settings(deadline=None)
def test_datetime_never_raises(text: str) -> None:
    assert is_datetime(text) in (True, False)


@pytest.mark.parametrize(
    "hostile", ["2025-09-17T10:00:00." + "1" * 65536, "1" * 65536, "2025-09-17T10:00:00" + "+02" * 20000, "-" * 65536]
)
def test_datetime_refuses_long_text_at_once(hostile: str) -> None:
    start = time.process_time()
    assert not is_datetime(hostile)
    assert time.process_time() - start < 0.05
