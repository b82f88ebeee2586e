import asyncio
import gzip
import json
import os
import re
import stat
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from edge_plugins.sinks.file import File

from edge.api import Batch, RetryableError
from edge.testing import ManualClock, OptionsError, build, deliver, make_batch, make_event

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.usefixtures("io_loop")

HOUR = "dt=2025-09-17/hour=10"
READ = {"none": bytes, "gzip": gzip.decompress, "zstd": zstd.decompress}
EXTENSION = {"none": ".ndjson", "gzip": ".ndjson.gz", "zstd": ".ndjson.zst"}


def files(root):
    """Relative names of all files below the root, sorted."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def n_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def numbers(path, compression="none"):
    """The numbers that `batch` has put into the events of a file, in order."""
    return [json.loads(line)["extras"]["n"] for line in READ[compression](path.read_bytes()).splitlines()]


def batch(*values, id="b", **metadata):
    return make_batch([make_event(extras={"n": value}) for value in values], id, **metadata)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "var" / "events"


@pytest.fixture
def opened(io_loop, root):
    """Build and open sinks; those that the test leaves open are closed."""
    sinks = []

    async def open_sink(id="archive", clock=None, **options):
        sink = build(File, id, path=str(root), **options)
        if clock is not None:
            sink.monotonic, sink.sleep = clock.monotonic, clock.sleep
        sinks.append(sink)
        await sink.edge_open()
        return sink

    yield open_sink
    for sink in sinks:
        io_loop.run_sync(sink.edge_close)


async def test_file_writes_the_stored_bytes_as_lines(root):
    lines = [b'{"a":1}', '{"b":"ü\\n"}'.encode()]
    await deliver(build(File, "archive", path=str(root)), make_batch(lines))
    (name,) = files(root)
    assert re.fullmatch(rf"{HOUR}/archive-\d{{8}}T\d{{6}}Z-1\.ndjson", name)
    assert (root / name).read_bytes() == b'{"a":1}\n{"b":"\xc3\xbc\\n"}\n'


@pytest.mark.parametrize(
    ("partition", "directories"),
    [("hour", ["dt=2026-11-23/hour=20", "dt=2026-11-24/hour=01"]), ("day", ["dt=2026-11-23", "dt=2026-11-24"])],
)
async def test_file_partitions_by_time_of_receipt(root, opened, partition, directories):
    sink = await opened(partition=partition)
    await sink.edge_deliver(batch(1, received_at=datetime(2026, 11, 23, 20, 59, 59, tzinfo=UTC)))
    await sink.edge_deliver(batch(2, received_at=datetime.fromisoformat("2026-11-23T20:00:00-05:00")))
    await sink.edge_close()
    assert [name.rpartition("/")[0] for name in files(root)] == directories
    assert [numbers(root / name) for name in files(root)] == [[1], [2]]


async def test_file_without_partitions_writes_into_its_root(root, opened):
    sink = await opened(partition="none")
    await sink.edge_deliver(batch(1))
    await sink.edge_close()
    assert ["/" in name for name in files(root)] == [False]


@pytest.mark.parametrize("compression", sorted(READ))
async def test_file_is_readable_after_each_batch(root, opened, compression):
    sink = await opened(compression=compression)
    for n in range(3):
        await sink.edge_deliver(batch(2 * n, 2 * n + 1, id=str(n)))
        (name,) = files(root)
        assert name.endswith(EXTENSION[compression] + ".open")
        assert numbers(root / name, compression) == list(range(2 * n + 2))
    await sink.edge_close()
    assert files(root) == [name.removesuffix(".open")]
    assert numbers(root / files(root)[0], compression) == list(range(6))


async def test_file_rotates_by_size_and_numbers_the_files(root, opened):
    sink = await opened(partition="none", rotate={"max_bytes": 900})
    for n in range(5):  # an event has about 340 bytes
        await sink.edge_deliver(batch(n, id=str(n)))
    await sink.edge_close()
    # Opened within one second or two, the names sort by time and number.
    assert [numbers(root / name) for name in files(root)] == [[0, 1], [2, 3], [4]]


async def test_file_takes_a_batch_larger_than_a_file(root, opened):
    sink = await opened(partition="none", rotate={"max_bytes": 100})
    await sink.edge_deliver(batch(1, 2, 3))
    assert [numbers(root / name) for name in files(root)] == [[1, 2, 3]]
    assert not files(root)[0].endswith(".open")


async def test_file_closes_an_old_file_when_no_events_come(root, opened, eventually):
    clock = ManualClock()
    sink = await opened(clock=clock, rotate={"max_age_secs": 60})
    await sink.edge_deliver(batch(1))
    await clock.wait_for_sleepers()
    clock.advance(59)
    await clock.wait_for_sleepers()
    (name,) = files(root)
    assert name.endswith(".open")
    clock.advance(3)
    await eventually(lambda: files(root) == [name.removesuffix(".open")])
    await sink.edge_deliver(batch(2, id="c"))
    assert len(files(root)) == 2


async def test_file_never_overwrites_a_name_that_is_taken(root, opened):
    sink = await opened(partition="none")
    await sink.edge_deliver(batch(1))
    (name,) = files(root)
    taken = root / name.removesuffix(".open")
    taken.write_text("somebody else's\n")
    await sink.edge_close()
    assert taken.read_text() == "somebody else's\n"
    (other,) = set(files(root)) - {taken.name}
    assert other == taken.name.replace("-1.", "-2.")
    assert numbers(root / other) == [1]


async def test_file_modes_are_no_wider_than_0640_and_0750(root, opened):
    before = os.umask(0)
    try:
        sink = await opened()
        await sink.edge_deliver(batch(1))
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in root.rglob("*") if path.is_dir()}
    assert modes | {stat.S_IMODE(root.stat().st_mode), stat.S_IMODE(root.parent.stat().st_mode)} == {0o750}
    assert stat.S_IMODE((root / files(root)[0]).stat().st_mode) == 0o640


async def test_file_bounds_its_open_files(root, opened):
    sink = await opened()
    before = n_descriptors()
    times = [datetime(2026, 1, 1 + n // 24, n % 24, tzinfo=UTC) for n in range(100)]
    each = [make_batch([make_event(extras={"n": n})], received_at=time) for n, time in enumerate(times)]
    many = Batch("many", [block for batch in each for block in batch.blocks])
    await sink.edge_deliver(many)
    assert n_descriptors() - before <= 2 * 16
    assert len(files(root)) == 100
    await sink.edge_deliver(many)
    await sink.edge_close()
    assert sorted(n for name in files(root) for n in numbers(root / name)) == sorted([*range(100), *range(100)])
    assert n_descriptors() == before


async def test_file_leaves_no_thread_task_or_descriptor_behind(root, eventually):
    before = n_descriptors()
    await deliver(build(File, "archive", path=str(root)), batch(1))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert n_descriptors() == before
    await eventually(lambda: not any(thread.name == "file sink archive" for thread in threading.enumerate()))


async def test_file_close_without_open_does_nothing(root):
    await build(File, path=str(root)).edge_close()
    assert not root.exists()


async def test_file_opened_twice_goes_on_with_its_files(root, opened):
    sink = await opened()
    await sink.edge_deliver(batch(1))
    await sink.edge_open()
    await sink.edge_deliver(batch(2, id="c"))
    await sink.edge_close()
    assert [numbers(root / name) for name in files(root)] == [[1, 2]]


async def test_file_of_a_new_configuration_leaves_the_files_of_the_old_one_alone(root, opened):
    old = await opened()
    await old.edge_deliver(batch(1))
    new = await opened()
    await new.edge_deliver(batch(2))
    await old.edge_deliver(batch(3, id="c"))
    await old.edge_close()
    await new.edge_close()
    assert sorted(numbers(root / name) for name in files(root)) == [[1, 3], [2]]


async def test_file_deleted_by_somebody_is_replaced(root, opened):
    sink = await opened()
    await sink.edge_deliver(batch(1))
    (root / files(root)[0]).unlink()
    await sink.edge_deliver(batch(2, id="c"))
    await sink.edge_close()
    assert [numbers(root / name) for name in files(root)] == [[2]]


async def test_file_makes_a_deleted_directory_anew(root, opened):
    sink = await opened()
    await sink.edge_deliver(batch(1))
    (root / files(root)[0]).unlink()
    (root / HOUR).rmdir()
    await sink.edge_deliver(batch(2, id="c"))
    assert numbers(root / files(root)[0]) == [2]


@pytest.mark.parametrize("link", ["dt=2025-09-17", "dt=2025-09-17/hour=10"])
async def test_file_refuses_a_symbolic_link_in_the_partition(root, opened, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    sink = await opened()
    with pytest.raises(RetryableError, match="symbolic link") as raised:
        await sink.edge_deliver(batch(1))
    assert raised.value.open_circuit
    assert files(outside) == []
    (root / link).unlink()
    await sink.edge_deliver(batch(1))
    assert [numbers(root / name) for name in files(root)] == [[1]]


async def test_file_refuses_a_file_in_place_of_a_directory(root, opened):
    root.mkdir(parents=True)
    (root / "dt=2025-09-17").write_text("in the way")
    sink = await opened()
    with pytest.raises(RetryableError, match="not a directory"):
        await sink.edge_deliver(batch(1))


@pytest.mark.parametrize("id", ["../../escape", "a/b", "..", "x\0y\r\n", "ü" * 300, ""])
async def test_file_names_stay_below_the_root_whatever_the_id(root, tmp_path, id):
    sink = File(id, build(File, path=str(root)).options)
    await deliver(sink, batch(1))
    (name,) = files(tmp_path)
    assert re.fullmatch(rf"var/events/{HOUR}/[A-Za-z0-9_.-]{{1,64}}-\d{{8}}T\d{{6}}Z-1\.ndjson", name)


async def test_file_root_that_cannot_be_made_is_retryable(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        with pytest.raises(RetryableError, match="cannot be written"):
            await deliver(build(File, path=str(tmp_path / path)), batch(1))


async def test_file_durability_decides_whether_the_disk_is_asked(root, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fdatasync", lambda fd: synced.append("data"))
    monkeypatch.setattr("os.fsync", lambda fd: synced.append("name"))
    await deliver(build(File, path=str(root / "os"), durability="os"), batch(1))
    assert synced == []
    await deliver(build(File, path=str(root / "disk")), batch(1))
    assert "data" in synced
    # Of the directories: root, date, hour, and the name twice (created, renamed).
    assert synced.count("name") >= 5


@pytest.mark.parametrize(
    "options",
    [
        {"path": ""},
        {"path": 7},
        {"partition": "minute"},
        {"rotate": {"max_bytes": 0}},
        {"rotate": {"max_bytes": 1.5}},
        {"rotate": {"max_age_secs": True}},
        {"rotate": {"max_age": 1}},
        {"compression": "brotli"},
        {"durability": "memory"},
    ],
)
def test_file_refuses_wrong_options(options):
    with pytest.raises(OptionsError):
        build(File, **{"path": "var/events", **options})


def test_file_fills_in_its_defaults():
    assert build(File, path="p", rotate={"max_bytes": 5}).options == {
        "path": "p",
        "partition": "hour",
        "rotate": {"max_bytes": 5, "max_age_secs": 3600},
        "compression": "none",
        "durability": "disk",
    }
    assert build(File, path="p").options["rotate"] == {"max_bytes": 134217728, "max_age_secs": 3600}
