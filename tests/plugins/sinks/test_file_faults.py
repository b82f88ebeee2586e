"""The file sink after a SIGKILL, on a full disk, and with a disk that fails."""

import asyncio
import errno
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from edge_plugins.sinks.file import File
from edge_plugins.support.partitions import MAX_OPEN_FILES

from edge.api import Batch, Block, EventMetadata, RetryableError
from edge.testing import RECEIVED_AT, ManualClock, build, deliver, make_batch, make_event

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.usefixtures("io_loop")

READ = {"none": bytes, "gzip": gzip.decompress, "zstd": zstd.decompress}
COMPRESS = {"none": bytes, "gzip": gzip.compress, "zstd": zstd.compress}
EXTENSION = {"none": ".ndjson", "gzip": ".ndjson.gz", "zstd": ".ndjson.zst"}
STEM = "archive-20251123T201731Z"


def names(root):
    return sorted(path.name for path in root.rglob("*") if not path.is_dir())


def numbers(root, compression="none"):
    """The numbers of all events below the root, one list for each file."""
    paths = sorted(path for path in root.rglob("*") if not path.is_dir())
    return [
        [json.loads(line)["extras"]["n"] for line in READ[compression](path.read_bytes()).splitlines()]
        for path in paths
    ]


def batch(*values, id="b"):
    return make_batch([make_event(extras={"n": value}) for value in values], id)


def line(n):
    return json.dumps({"extras": {"n": n}}).encode() + b"\n"


def sink_at(root, **options):
    return build(File, "archive", path=str(root), **options)


@pytest.fixture(params=sorted(READ))
def compression(request):
    return request.param


KILLED = """
import asyncio, os, sys
from edge.testing import build, make_batch, make_event
from edge_plugins.sinks.file import File

async def main():
    sink = build(File, "archive", path=sys.argv[1], compression=sys.argv[2])
    await sink.edge_open()
    n = 0
    while True:
        events = [make_event(extras={"n": n + index, "text": os.urandom(200).hex()}) for index in range(20)]
        await sink.edge_deliver(make_batch(events, str(n)))
        n += 20
        print(n, flush=True)

asyncio.run(main())
"""


def kill_while_delivering(tmp_path, compression):
    """Deliver in a process that is killed without warning; return how many events it had acknowledged."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), compression]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(15):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    return int(rest[-1]) if rest else acknowledged


async def test_file_has_every_acknowledged_event_after_a_kill(tmp_path, compression):
    acknowledged = kill_while_delivering(tmp_path, compression)
    (left,) = names(tmp_path)
    assert left.endswith(".open")
    sink = sink_at(tmp_path)
    await sink.edge_open()
    await sink.edge_close()
    assert names(tmp_path) == [left.removesuffix(".open")]
    (kept,) = numbers(tmp_path, compression)
    assert kept == list(range(len(kept)))
    assert len(kept) >= acknowledged


async def test_file_cuts_what_is_torn_off_a_leftover(tmp_path, compression):
    partition = tmp_path / "dt=2025-11-23" / "hour=20"
    partition.mkdir(parents=True)
    compress = COMPRESS[compression]
    whole, torn = compress(line(1) + line(2)), compress(line(3))[:-1]
    (partition / f"{STEM}-1{EXTENSION[compression]}.open").write_bytes(whole + torn)
    await deliver(sink_at(tmp_path, compression="none"), batch())
    assert f"{STEM}-1{EXTENSION[compression]}" in names(tmp_path)
    assert (partition / f"{STEM}-1{EXTENSION[compression]}").read_bytes() == whole


async def test_file_removes_a_leftover_without_a_complete_batch(tmp_path):
    for number, data in enumerate([b"", b'{"half', b"\0" * 5000]):
        (tmp_path / f"{STEM}-{number}.ndjson.open").write_bytes(data)
    (tmp_path / f"{STEM}-9.ndjson.gz.open").write_bytes(gzip.compress(line(1))[:-3])
    sink = sink_at(tmp_path)
    await sink.edge_open()
    await sink.edge_close()
    assert names(tmp_path) == []


async def test_file_repairs_only_leftovers_with_its_own_name(tmp_path):
    strangers = [
        "archive.ndjson.open",
        f"archive_2-{STEM}-1.ndjson.open",
        f"other-{STEM[8:]}-1.ndjson.open",
        f"{STEM}-1.parquet.open",
        f"{STEM}-1.ndjson",
    ]
    for name in strangers:
        (tmp_path / name).write_bytes(b"torn")
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / f"{STEM}-1.ndjson.open").write_bytes(b"torn")
    sink = sink_at(tmp_path)
    await sink.edge_open()
    await sink.edge_close()
    assert names(tmp_path) == sorted([*strangers, f"{STEM}-1.ndjson.open"])
    assert all((tmp_path / name).read_bytes() == b"torn" for name in strangers)


async def test_file_gives_a_leftover_another_number_when_its_name_is_taken(tmp_path):
    (tmp_path / f"{STEM}-1.ndjson").write_bytes(line(1))
    (tmp_path / f"{STEM}-2.ndjson").write_bytes(line(2))
    (tmp_path / f"{STEM}-1.ndjson.open").write_bytes(line(3))
    sink = sink_at(tmp_path)
    await sink.edge_open()
    await sink.edge_close()
    assert numbers(tmp_path) == [[1], [2], [3]]
    assert names(tmp_path)[2] == f"{STEM}-3.ndjson"


async def test_file_finishes_a_rename_that_was_cut_in_two(tmp_path):
    (tmp_path / f"{STEM}-1.ndjson.open").write_bytes(line(1))
    os.link(tmp_path / f"{STEM}-1.ndjson.open", tmp_path / f"{STEM}-1.ndjson")
    sink = sink_at(tmp_path)
    await sink.edge_open()
    await sink.edge_close()
    assert names(tmp_path) == [f"{STEM}-1.ndjson"]


async def test_file_opens_among_leftovers_that_are_no_files(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"torn")
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{STEM}-1.ndjson.open").symlink_to(target)
    os.mkfifo(root / f"{STEM}-2.ndjson.open")
    (root / f"{STEM}-3.ndjson.open").mkdir()
    (root / "dt=2025-11-23").symlink_to(tmp_path)
    (tmp_path / f"{STEM}-4.ndjson.open").write_bytes(b"torn")
    sink = sink_at(root)
    await sink.edge_open()
    await sink.edge_close()
    assert target.read_bytes() == b"torn"
    assert (tmp_path / f"{STEM}-4.ndjson.open").read_bytes() == b"torn"


FULL = """
import asyncio, resource, sys
from edge.api import RetryableError
from edge.testing import build, make_batch, make_event
from edge_plugins.sinks.file import File

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    sink = build(File, "archive", path=sys.argv[1], compression=sys.argv[2])
    await sink.edge_open()
    for n in range(60):
        text = "".join(chr(97 + (n * i) % 26) for i in range(700))
        batch = make_batch([make_event(extras={"n": n, "text": text})], str(n))
        while True:
            try:
                await sink.edge_deliver(batch)
                break
            except RetryableError as error:
                print(n, error)
    await sink.edge_close()

asyncio.run(main())
"""


def test_file_too_large_for_the_system_is_closed_and_the_next_one_begins(tmp_path, compression):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), compression], capture_output=True, text=True, timeout=20, check=True
    )
    failures = done.stdout.splitlines()
    assert failures
    assert all(failure.endswith("cannot be written: File too large") for failure in failures)
    kept = numbers(tmp_path, compression)
    assert len(kept) == len(failures) + 1
    assert [n for one_file in kept for n in one_file] == list(range(60))


def fail(monkeypatch, function, error, when=lambda: True, partly=0):
    """Let `os.write` or `os.fdatasync` fail with an errno, after having written a part."""
    real = getattr(os, function)

    def failing(descriptor, *data):
        if not when():
            return real(descriptor, *data)
        if partly:
            real(descriptor, data[0][:partly])
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, function, failing)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
async def test_file_is_cut_back_after_a_failed_write(tmp_path, monkeypatch, compression, error):
    sink = sink_at(tmp_path, compression=compression)
    await sink.edge_open()
    await sink.edge_deliver(batch(1, id="1"))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        fail(patch, "write", error, partly=20)
        for _ in range(3):
            with pytest.raises(RetryableError, match=os.strerror(error)):
                await sink.edge_deliver(batch(2, id="2"))
            assert path.read_bytes() == good
    await sink.edge_deliver(batch(2, id="2"))
    await sink.edge_close()
    assert numbers(tmp_path, compression) == [[1, 2]]


async def test_file_that_could_not_take_its_first_batch_is_removed(tmp_path, monkeypatch):
    sink = sink_at(tmp_path)
    await sink.edge_open()
    with monkeypatch.context() as patch:
        fail(patch, "write", errno.ENOSPC, partly=20)
        with pytest.raises(RetryableError, match="No space left"):
            await sink.edge_deliver(batch(1))
    assert names(tmp_path) == []
    await sink.edge_deliver(batch(1))
    await sink.edge_close()
    assert numbers(tmp_path) == [[1]]


async def test_file_is_not_synced_again_after_a_failed_sync(tmp_path, monkeypatch, eventually):
    clock = ManualClock()
    sink = sink_at(tmp_path)
    sink.monotonic, sink.sleep = clock.monotonic, clock.sleep
    await sink.edge_open()
    await sink.edge_deliver(batch(1, id="1"))
    (before,) = names(tmp_path)
    with monkeypatch.context() as patch:
        fail(patch, "fdatasync", errno.EIO)
        with pytest.raises(RetryableError, match="Input/output error"):
            await sink.edge_deliver(batch(2, id="2"))
    await sink.edge_deliver(batch(2, id="2"))
    assert len(names(tmp_path)) == 2
    # The file that was left is published by the next look at the ages, the new one stays open.
    await clock.wait_for_sleepers()
    clock.advance(30)
    await eventually(lambda: before.removesuffix(".open") in names(tmp_path))
    assert sorted(numbers(tmp_path)) == [[1], [2]]
    await sink.edge_close()


async def test_file_that_cannot_be_renamed_is_kept_and_renamed_later(tmp_path, monkeypatch, expect_log):
    expect_log.append("a finished file keeps its")
    sink = sink_at(tmp_path)
    await sink.edge_open()
    await sink.edge_deliver(batch(1))

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        await sink.edge_close()
    (left,) = names(tmp_path)
    assert left.endswith(".open")
    await sink.edge_open()
    await sink.edge_close()
    assert names(tmp_path) == [left.removesuffix(".open")]


async def test_file_is_renamed_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    await deliver(sink_at(tmp_path), batch(1))
    (name,) = names(tmp_path)
    assert name.endswith("-1.ndjson")


async def test_file_on_a_device_that_is_always_full_is_retryable(tmp_path, monkeypatch):
    # Every write really fails with ENOSPC: the descriptor is the one of /dev/full.
    full = os.open("/dev/full", os.O_WRONLY)
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(full, data))
    try:
        with pytest.raises(RetryableError, match="No space left on device"):
            await deliver(sink_at(tmp_path), batch(1))
    finally:
        os.close(full)
    assert names(tmp_path) == []


async def test_file_appends_a_batch_once_although_the_sink_was_opened_again_while_the_disk_hung(tmp_path, monkeypatch):
    sink, release, real = sink_at(tmp_path), threading.Event(), os.write
    await sink.edge_open()

    def slow(descriptor, data):
        release.wait(10)
        return real(descriptor, data)

    async def times_out(attempt):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await attempt

    monkeypatch.setattr(os, "write", slow)
    await times_out(sink.edge_deliver(batch(1)))
    await times_out(sink.edge_open())
    await times_out(sink.edge_deliver(batch(1)))
    release.set()
    await sink.edge_open()
    await sink.edge_deliver(batch(1))
    await sink.edge_close()
    assert numbers(tmp_path) == [[1]]


async def test_file_keeps_whole_batches_when_a_write_to_many_partitions_fails(tmp_path, monkeypatch):
    """Partitions beyond those that may be open at once are written later; the first ones keep their lines."""
    hours = [RECEIVED_AT + timedelta(hours=hour) for hour in range(MAX_OPEN_FILES + 4)]
    lines = [json.dumps({"extras": {"n": n}}).encode() for n in range(len(hours))]
    many = Batch(
        "b", [Block(EventMetadata("web", hour, "req_1"), 1, line) for hour, line in zip(hours, lines, strict=True)]
    )
    sink = sink_at(tmp_path)
    await sink.edge_open()
    with monkeypatch.context() as patch:
        written = itertools.count(1)
        fail(patch, "write", errno.ENOSPC, when=lambda: next(written) > MAX_OPEN_FILES + 2, partly=5)
        with pytest.raises(RetryableError):
            await sink.edge_deliver(many)
    assert sorted(n for one_file in numbers(tmp_path) for n in one_file) == list(range(MAX_OPEN_FILES))
    await sink.edge_deliver(many)
    await sink.edge_close()
    assert sorted(n for one_file in numbers(tmp_path) for n in one_file) == sorted(
        [*range(MAX_OPEN_FILES), *range(len(hours))]
    )
