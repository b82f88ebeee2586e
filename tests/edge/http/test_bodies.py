from __future__ import annotations

import bz2
import gzip
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.http.bodies import (
    _DECODERS,
    MAX_PARTS,
    RATIO_FREE_BYTES,
    STEP_BYTES,
    BodyError,
    content_codings,
    decompress,
    decompress_small,
    media_type,
    sniff_codings,
    split_ndjson,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


COMPRESSORS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "zstd": ("zstd", zstd.compress),
    "br": ("br", lambda data: brotli.compress(data, quality=4)),
}
EACH = pytest.mark.parametrize(("coding", "compress"), COMPRESSORS.values(), ids=COMPRESSORS.keys())


def refused(call: Callable[[], object]) -> BodyError:
    with pytest.raises(BodyError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "  ",
        "application/json",
        "APPLICATION/JSON",
        " application/json ",
        "application/json;",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json ; CHARSET = utf8",
        "application/json; charset=us-ascii",
        'application/json; profile="a;charset=latin-1"',
        r'application/json; profile="a\";charset=latin-1"; charset=utf-8',
        "application/json; odata",
        "application/vnd.api+json",
        "application/cloudevents-batch+json; charset=utf-8",
        "text/plain",
        "text/plain;charset=UTF-8",
    ],
)
def test_media_type_reads_as_json(header: str | None) -> None:
    assert media_type(header) == "json"


@pytest.mark.parametrize(
    "header", ["application/x-ndjson", "application/ndjson", "Application/JSONL", "application/x-ndjson; charset=utf-8"]
)
def test_media_type_reads_as_ndjson(header: str) -> None:
    assert media_type(header) == "ndjson"


@pytest.mark.parametrize(
    "header",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/html",
        "application/xml",
        "application/octet-stream",
        "application",
        "json",
        "/",
        ";",
        "; charset=utf-8",
        "application/+json",
        "application/a b+json",
        "application/a/b+json",
        "text/x+json",
        "application/json, application/json",
        "application/json\x00",
        "application/jsön",
        "x" * 16_000,
    ],
)
def test_media_type_refuses_others(header: str) -> None:
    error = refused(lambda: media_type(header))
    assert (error.status, error.code, error.field) == (415, "http.media_type", "Content-Type")


@pytest.mark.parametrize(
    "header",
    [
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        'text/plain; charset="ISO-8859-1"',
        "application/x-ndjson; charset=",
        "application/json; a=b; charset=x",
        'application/json; profile="a"; charset=koi8-r',
        "application/json; charset=utf-8; charset=utf-7",
    ],
)
def test_media_type_refuses_other_charsets(header: str) -> None:
    error = refused(lambda: media_type(header))
    assert (error.status, error.message) == (415, "must have the charset utf-8 or none")


@given(st.text(alphabet='application/json;charset="\\= utf-8\t', max_size=60))
@settings(deadline=None)
def test_media_type_raises_nothing_else(header: str) -> None:
    try:
        found: object = media_type(header)
    except BodyError as error:
        found = error.status
    assert found in ("json", "ndjson", 415)


@pytest.mark.parametrize("filler", [";", ';"', '"', "; a", ';a="', '\\"', ';"\\'])
def test_media_type_refuses_long_headers_unread(filler: str) -> None:
    start = time.process_time()
    error = refused(lambda: media_type("application/json;" + filler * (16_384 // len(filler))))
    assert (error.status, error.code) == (415, "http.media_type")
    assert media_type("application/json;" + (filler * 240)[:239]) == "json"
    assert time.process_time() - start < 0.005


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        (None, ()),
        ("", ()),
        (" , ", ()),
        ("identity", ()),
        ("gzip", ("gzip",)),
        ("GZip", ("gzip",)),
        (" x-gzip ", ("gzip",)),
        ("deflate", ("deflate",)),
        ("zstd", ("zstd",)),
        ("br", ("br",)),
        ("identity, gzip", ("gzip",)),
        ("gzip,", ("gzip",)),
    ],
)
def test_content_codings_takes(header: str | None, codings: tuple[str, ...]) -> None:
    assert content_codings(header) == codings


@pytest.mark.parametrize("header", ["gzip, gzip", "gzip,br", "x-gzip, identity, deflate", "zstd,zstd,zstd"])
def test_content_codings_refuses_several(header: str) -> None:
    error = refused(lambda: content_codings(header))
    assert (error.status, error.code, error.field) == (415, "http.encoding", "Content-Encoding")
    assert error.message == "must name one coding only"


@pytest.mark.parametrize("header", ["compress", "lzma", "gzip;q=1", "gz ip", "*", "gzip, compress", "\xff", "bzip2"])
def test_content_codings_refuses_unknown_ones(header: str) -> None:
    error = refused(lambda: content_codings(header))
    assert (error.status, error.code) == (415, "http.encoding")
    assert error.message == "must be one of: gzip, deflate, zstd, br, identity"


def test_sniffing_finds_gzip_only() -> None:
    assert sniff_codings(gzip.compress(b"{}")) == ("gzip",)
    for data in (b"", b"\x1f", b"{}", zstd.compress(b"{}"), zlib.compress(b"{}"), bz2.compress(b"{}")):
        assert sniff_codings(data) == ()


@EACH
@pytest.mark.parametrize("size", [0, 1, 1000, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * MIB])
def test_decompress_gives_back_what_was_compressed(coding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    # Half noise, half zeros: inputs longer than a step, and steps that give more than they take.
    data = os.urandom(size // 2) + bytes(size - size // 2)
    assert decompress(coding, compress(data), 4 * MIB, 100) == data


@EACH
def test_decompress_small_gives_up_what_is_not_small(coding: str, compress: Callable[[bytes], bytes]) -> None:
    assert decompress_small(coding, compress(b"x" * 1000), 1000) == b"x" * 1000
    assert decompress_small(coding, compress(b"x" * 1001), 1000) is None
    assert decompress_small(coding, compress(bytes(50 * MIB)), 65536) is None
    assert refused(lambda: decompress_small(coding, compress(b"x" * 1000)[:-1], 1000)).status == 400


@pytest.mark.parametrize(("coding", "part"), [("gzip", gzip.compress(b"")), ("zstd", zstd.compress(b""))])
def test_decompress_small_does_not_look_at_many_parts(coding: str, part: bytes) -> None:
    assert decompress_small(coding, part * 16, 1000) == b""
    assert decompress_small(coding, part * 17, 1000) is None


@EACH
@pytest.mark.parametrize("data", [bytes(2 * MIB), os.urandom(2 * MIB), (os.urandom(30_000) + bytes(100_000)) * 10])
def test_decompress_goes_in_bounded_steps(coding: str, compress: Callable[[bytes], bytes], data: bytes) -> None:
    pieces = list(_DECODERS[coding](compress(data), MAX_PARTS))
    assert max(map(len, pieces)) <= STEP_BYTES
    assert b"".join(pieces) == data


@EACH
def test_decompress_refuses_long_data_without_its_end(coding: str, compress: Callable[[bytes], bytes]) -> None:
    data = compress(os.urandom(300_000))
    for length in (STEP_BYTES, 2 * STEP_BYTES, len(data) - 1):
        error = refused(lambda length=length: decompress(coding, data[:length], MIB, 100))  # type: ignore[misc]
        assert error.status == 400


@EACH
def test_decompress_takes_exactly_the_limit(coding: str, compress: Callable[[bytes], bytes]) -> None:
    data = os.urandom(200_000)
    assert decompress(coding, compress(data), len(data), 100) == data
    error = refused(lambda: decompress(coding, compress(data), len(data) - 1, 100))
    assert (error.status, error.code, error.field) == (413, "limit.decompressed", "body")
    assert error.message == "must be at most 199999 bytes when decompressed"


@EACH
def test_decompress_judges_the_ratio_after_64_kib_only(coding: str, compress: Callable[[bytes], bytes]) -> None:
    assert decompress(coding, compress(bytes(RATIO_FREE_BYTES)), 4 * MIB, 10) == bytes(RATIO_FREE_BYTES)
    error = refused(lambda: decompress(coding, compress(bytes(RATIO_FREE_BYTES + 1)), 4 * MIB, 10))
    assert (error.status, error.code) == (413, "limit.decompressed")
    assert error.message == "must not be compressed more than 10 to 1"


@EACH
def test_decompress_refuses_every_truncation(coding: str, compress: Callable[[bytes], bytes]) -> None:
    data = compress(b'{"event_id": "evt_1", "event_type": "click"}' * 3)
    for length in range(len(data)):
        error = refused(lambda length=length: decompress(coding, data[:length], MIB, 100))  # type: ignore[misc]
        assert (error.status, error.code, error.message) == (400, "json.encoding", f"is not valid {coding}")


@EACH
@pytest.mark.parametrize("junk", [b"\x00", b"junk", b"{}", b"\x1f\x8b", b"\xff" * 100_000])
def test_decompress_refuses_trailing_junk(coding: str, compress: Callable[[bytes], bytes], junk: bytes) -> None:
    error = refused(lambda: decompress(coding, compress(b"x" * 100) + junk, MIB, 100))
    assert (error.status, error.code) == (400, "json.encoding")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "br"])
@pytest.mark.parametrize("data", [b"", b"{}", b'{"event_id": "evt_1"}', b"\x1f\x8b", b"\xff" * 1000, b"x\x9c", b"("])
def test_decompress_refuses_what_is_not_compressed(coding: str, data: bytes) -> None:
    assert refused(lambda: decompress(coding, data, MIB, 100)).status == 400


def test_decompress_checks_the_checksum_of_gzip() -> None:
    data = bytearray(gzip.compress(b"x" * 100))
    data[-5] ^= 1
    assert refused(lambda: decompress("gzip", bytes(data), MIB, 100)).status == 400


def test_decompress_takes_members_and_frames_under_one_cap() -> None:
    parts = [os.urandom(50_000) for _ in range(4)]
    for coding, compress in (("gzip", gzip.compress), ("zstd", zstd.compress)):
        data = b"".join(map(compress, parts))
        assert decompress(coding, data, 200_000, 100) == b"".join(parts)
        assert refused(lambda: decompress(coding, data, 199_999, 100)).status == 413  # noqa: B023 - called at once


def test_decompress_skips_skippable_frames_of_zstd() -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    data = skippable + zstd.compress(b"{") + skippable + zstd.compress(b"}") + skippable
    assert decompress("zstd", data, MIB, 100) == b"{}"


@pytest.mark.parametrize("coding", ["deflate", "br"])
def test_decompress_takes_one_stream_only_where_the_format_has_one(coding: str) -> None:
    compress = dict(COMPRESSORS.values())[coding]
    assert refused(lambda: decompress(coding, compress(b"a") + compress(b"b"), MIB, 100)).status == 400


def test_decompress_undoes_one_layer_only() -> None:
    inner = gzip.compress(b"{}")
    assert decompress("gzip", gzip.compress(inner), MIB, 100) == inner


@pytest.mark.parametrize(
    ("coding", "empty"),
    [("gzip", gzip.compress(b"")), ("zstd", zstd.compress(b"")), ("zstd", b"\x50\x2a\x4d\x18" + bytes(4))],
)
def test_decompress_refuses_a_flood_of_empty_parts(coding: str, empty: bytes) -> None:
    assert decompress(coding, empty * MAX_PARTS, MIB, 100) == b""
    flood = empty * (MIB // len(empty))
    start = time.process_time()
    error = refused(lambda: decompress(coding, flood, MIB, 100))
    assert time.process_time() - start < 0.25
    assert (error.status, error.message) == (413, "must have at most 1024 compressed parts")


def test_decompress_refuses_a_large_window_of_zstd() -> None:
    def with_window(log: int) -> bytes:
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
        # Without the size in its header a frame asks for its whole window.
        return packer.compress(b"x" * 1000) + packer.flush()

    assert decompress("zstd", with_window(23), MIB, 100) == b"x" * 1000
    assert refused(lambda: decompress("zstd", with_window(24), MIB, 100)).status == 400


@pytest.mark.parametrize("window_bits", range(10, 25))
def test_decompress_refuses_a_large_window_of_brotli(window_bits: int) -> None:
    data = brotli.compress(b"x" * 1000, lgwin=window_bits)
    if window_bits <= 22:
        assert decompress("br", data, MIB, 100) == b"x" * 1000
    else:
        assert refused(lambda: decompress("br", data, MIB, 100)).status == 400


@EACH
@given(noise=st.data())
@settings(deadline=None, max_examples=30)
def test_decompress_raises_nothing_else(coding: str, compress: Callable[[bytes], bytes], noise: st.DataObject) -> None:
    data = bytearray(compress(noise.draw(st.binary(max_size=300))))
    for _ in range(noise.draw(st.integers(1, 4))):
        data[noise.draw(st.integers(0, len(data) - 1))] ^= noise.draw(st.integers(1, 255))
    try:
        status, size = 200, len(decompress(coding, bytes(data), 100_000, 100))
    except BodyError as error:
        status, size = error.status, 0
    assert status in (200, 400, 413)
    assert size <= 100_000


def deflate_zeros(packed_from: int, times: int) -> bytes:
    """Deflate blocks of `packed_from` zeros, repeated: each ends at a byte and refers to nothing before it."""
    packer = zlib.compressobj(9, wbits=-15)
    return (packer.compress(bytes(packed_from)) + packer.flush(zlib.Z_FULL_FLUSH)) * times


def bombs() -> dict[str, tuple[str, bytes]]:
    blocks = deflate_zeros(4 * MIB, 2560)
    return {
        "gzip of 10 GiB": ("gzip", b"\x1f\x8b\x08" + bytes(7) + blocks),
        "gzip members of 10 GiB": ("gzip", gzip.compress(bytes(10 * MIB)) * 1024),
        "gzip of noise, then 10 GiB": (
            "gzip",
            gzip.compress(os.urandom(3 * MIB)) + b"\x1f\x8b\x08" + bytes(7) + blocks,
        ),
        "deflate of 10 GiB": ("deflate", b"x\xda" + blocks),
        "bare deflate of 10 GiB": ("deflate", blocks),
        "zstd frames of 10 GiB": ("zstd", zstd.compress(bytes(10 * MIB)) * 1024),
        "br of 100 MiB": ("br", brotli.compress(bytes(100 * MIB), quality=1, lgwin=22)),
    }


MEASURE = """
import sys, time
from pathlib import Path
from edge.http.bodies import BodyError, decompress
def peak():
    # Not ru_maxrss: that begins at what the parent had.
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
data, before, start = Path(sys.argv[2]).read_bytes(), peak(), time.process_time()
try:
    decompress(sys.argv[1], data, 4 << 20, int(sys.argv[3]))
except BodyError as error:
    print(error.status, error.code, peak() - before, time.process_time() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_decompress_defuses_bombs_in_flat_memory(tmp_path: Path) -> None:
    for name, (coding, data) in bombs().items():
        bomb = tmp_path / "bomb"
        bomb.write_bytes(data)
        for ratio in (100, 1_000_000):
            command = [sys.executable, "-c", MEASURE, coding, bomb, str(ratio)]
            out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
            assert out[:2] == ["413", "limit.decompressed"], name
            assert 1024 < int(out[2]) < 16 * 1024, f"{name} took {out[2]} KiB"
            assert float(out[3]) < 0.25, f"{name} took {out[3]} s"


def test_split_ndjson_skips_blank_lines_and_takes_any_line_end() -> None:
    raw = b'\n{"a": 1}\r\n\r\n  {"b": 2} \t\r\n\n \t \n{"c":\t3}'
    assert split_ndjson(raw) == [b'{"a": 1}', b'{"b": 2}', b'{"c":\t3}']
    assert split_ndjson(raw + b"\n") == split_ndjson(raw)
    assert split_ndjson(b"") == split_ndjson(b"\n\r\n \n") == []


def test_split_ndjson_cuts_at_line_feeds_only() -> None:
    assert split_ndjson("1\r2\x0b3\x0c4\u20285\x85".encode()) == ["1\r2\x0b3\x0c4\u20285\x85".encode()]


def test_split_ndjson_stops_one_line_after_the_limit() -> None:
    assert split_ndjson(b"1\n2\n3\n4\n", 4) == [b"1", b"2", b"3", b"4"]
    assert split_ndjson(b"1\n2\n3\n4\n", 2) == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "raw", [b"\n" * 4 * MIB, b"\r\n" * 2 * MIB, b" \n" * 2 * MIB, b"1\n" * 2 * MIB, b" " * 4 * MIB]
)
def test_split_ndjson_is_not_held_up_by_many_lines(raw: bytes) -> None:
    start = time.process_time()
    assert len(split_ndjson(raw, 1000)) <= 1001
    assert time.process_time() - start < 0.2
