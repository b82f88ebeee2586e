"""What is intact of a file that was cut at any byte, or has garbage behind its last batch."""

import gzip
import os
import sys

import pytest
from edge_plugins.support.codecs import BLOCK_BYTES, CODECS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DECOMPRESS = {"none": bytes, "gzip": gzip.decompress, "zstd": zstd.decompress}
BATCHES = [b'{"n":1}\n', b'{"n":2}\n{"n":3}\n', b'{"text":"' + b"ab" * 40 + b'"}\n']


@pytest.fixture(params=sorted(CODECS))
def codec(request):
    return request.param


def intact(codec, path, data):
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return CODECS[codec].intact_bytes(descriptor)
    finally:
        os.close(descriptor)


def test_intact_bytes_is_the_whole_file_when_nothing_is_torn(codec, tmp_path):
    data = b"".join(map(CODECS[codec].compress, BATCHES))
    assert intact(codec, tmp_path / "f", data) == len(data)
    assert DECOMPRESS[codec](data) == b"".join(BATCHES)
    assert intact(codec, tmp_path / "f", b"") == 0


def test_intact_bytes_ends_with_the_last_complete_batch_when_cut_at_any_byte(codec, tmp_path):
    first = b"".join(map(CODECS[codec].compress, BATCHES[:2]))
    last = CODECS[codec].compress(BATCHES[2])
    for n_bytes in range(len(last)):
        assert intact(codec, tmp_path / "f", first + last[:n_bytes]) == len(first)


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"\xff\x1f\x8b garbage", b"\x1f\x8b\x08\x00garbage"])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_intact_bytes_leaves_garbage_behind_the_last_member_out(codec, garbage, tmp_path):
    data = CODECS[codec].compress(BATCHES[0])
    assert intact(codec, tmp_path / "f", data + garbage) == len(data)


def test_intact_bytes_of_batches_larger_than_a_block(codec, tmp_path):
    batches = [os.urandom(BLOCK_BYTES).hex().encode() + b"\n", b"x" * 5_000_000 + b"\n"]
    pieces = [CODECS[codec].compress(batch) for batch in batches]
    data = b"".join(pieces)
    assert intact(codec, tmp_path / "f", data) == len(data)
    assert intact(codec, tmp_path / "f", data[:-1]) == len(pieces[0])
    assert intact(codec, tmp_path / "f", data + data[: len(pieces[0]) - 1]) == len(data)
