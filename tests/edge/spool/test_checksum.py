from __future__ import annotations

import subprocess
import sys
import zlib

from hypothesis import example, given
from hypothesis import strategies as st

from edge.spool.checksum import crc32


@given(st.binary(max_size=300), st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(0, 70))
@example(b"123456789", 1, 0, 0)
def test_checksum_is_that_of_the_standard_library(data: bytes, times: int, start: int, offset: int) -> None:
    data *= times
    assert crc32(data, start) == zlib.crc32(data, start)
    assert crc32(memoryview(data)[offset:]) == zlib.crc32(data[offset:])


def test_spool_of_one_library_is_read_with_the_other() -> None:
    """What a machine without zlib-ng has written is read by one that has it, since both take the same checksum."""
    code = (
        "import sys; sys.modules['zlib_ng'] = sys.modules['zlib_ng.zlib_ng'] = None\n"
        "import zlib; from edge.spool import checksum, format, scan\n"
        "assert checksum.crc32 is format.crc32 is scan.crc32 is zlib.crc32\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
