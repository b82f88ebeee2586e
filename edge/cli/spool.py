"""`edge spool`: look into the spool, of a running gateway or a stopped one, and forget what no sink needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.cli import output
from edge.cli.common import NEGATIVE, OK, OrderedGroup, config_option, fail, load_config, load_registry
from edge.cli.shards import only_shard, shard_option, shards_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.spool.format import Frame
    from edge.spool.inspect import VerifyReport

Command = TypeVar("Command", bound="Callable[..., Any]")


def place_options(command: Command) -> Command:
    """Add the options that say which log is meant."""
    path = click.option(
        "--path",
        "log_path",
        type=click.Path(path_type=Path),
        metavar="DIRECTORY",
        help="A directory of segments in place of the configured spool, e.g. var/dead-letters/archive.",
    )
    return config_option(path(shard_option(command)))


def _places(config_path: Path, log_path: Path | None, shard: str | None) -> list[Path]:
    return [log_path] if log_path is not None else shards_of(load_config(config_path, load_registry()), shard)


@click.group("spool", cls=OrderedGroup)
def spool() -> None:
    """Show size and positions, verify every byte, print, repair or deliver again what is stored, forget a sink."""


@spool.command("stats")
@place_options
def stats(config_path: Path, log_path: Path | None, shard: str | None) -> None:
    """Show the size of the spool and how far each sink is; which are not configured, unless --path is given."""
    if log_path is not None:
        _print_stats(log_path, None)
        return
    config = load_config(config_path, load_registry())
    for index, path in enumerate(shards_of(config, shard)):
        if index:
            click.echo()
        _print_stats(path, {sink.id for sink in config.sinks})


def _print_stats(path: Path, known: set[str] | None) -> None:
    from edge.spool import inspect

    found = inspect.stats(path)
    output.fields(
        [
            ("path", path),
            ("segments", found.segments),
            ("bytes", found.bytes),
            ("first event", found.first_seq),
            ("next event", found.next_seq),
            ("quarantine bytes", found.quarantine_bytes),
        ]
    )
    if not found.cursors:
        return
    click.echo()
    columns = ("Sink", "Position", "Pending", "Delivered", "Dead lettered", "Skipped", "Lost", "Dropped", "Note")
    rows: list[tuple[object, ...]] = []
    for name, cursor in found.cursors.items():
        note = "not configured" if known is not None and name not in known else ""
        if cursor is None:
            rows.append((name, *["?"] * 7, note))
            continue
        # Where a sink is beyond the spool's end, nothing is pending for it.
        pending = max(0, found.next_seq - cursor.position)
        decided = (cursor.delivered, cursor.dead_lettered, cursor.skipped, cursor.lost, cursor.dropped)
        rows.append((name, cursor.position, pending, *decided, note))
    output.table(columns, rows)


@spool.command("forget")
@config_option
@click.option("--sink", required=True, metavar="ID", help="A sink that is not configured any more.")
def forget(config_path: Path, sink: str) -> None:
    """Remove the cursor of a sink that was taken out of the configuration.

    Should it come back, it begins as a new sink: with what is accepted from then on. Its dead letters stay.
    """
    config = load_config(config_path, load_registry())
    paths = shards_of(config)
    from edge.cli.admin import post
    from edge.spool import inspect
    from edge.spool.cursor import cursor_names, forget_cursor, load_cursor
    from edge.spool.errors import SpoolLockedError
    from edge.spool.lock import locked

    configured = {one.id for one in config.sinks}
    if sink in configured:
        fail(f"sink {sink} is configured: without its cursor it would lose what is pending for it")
    left = sorted({name for path in paths for name in cursor_names(path)} - configured)
    if sink not in left:
        fail(f"no cursor of a sink {sink}; not configured: {', '.join(left) or 'none'}")
    try:
        with ExitStack() as locks:
            for path in paths:
                locks.enter_context(locked(path))  # no gateway starts meanwhile
            for path in paths:
                cursor = load_cursor(path, sink)
                if cursor is not None and cursor.position > inspect.stats(path).next_seq:
                    fail(
                        f"{sink} is beyond the end of the spool: start the gateway once, so that no number is given"
                        " twice"
                    )
            for path in paths:
                forget_cursor(path, sink)
    except SpoolLockedError:
        # Whoever has the lock knows whether it keeps that cursor: its configuration may be an older one than the file.
        post(config.admin, "/spool/forget", {"sink": sink})
    click.echo(f"{sink}: forgotten")


@spool.command("verify")
@place_options
def verify(config_path: Path, log_path: Path | None, shard: str | None) -> None:
    """Read every frame and check it. Exit 1 when events are damaged or missing."""
    is_intact = True
    for index, path in enumerate(_places(config_path, log_path, shard)):
        if index:
            click.echo()
        is_intact = _print_verdict(path) and is_intact
    raise SystemExit(OK if is_intact else NEGATIVE)


def _print_verdict(path: Path) -> bool:
    from edge.spool import inspect

    report = inspect.verify(path)
    output.fields(
        [
            ("path", path),
            ("segments", report.segments),
            ("frames", report.frames),
            ("events", report.events),
            ("unfinished bytes", report.unfinished_bytes),
        ]
    )
    damage = list(_damage(report))
    if damage:
        click.echo()
        output.table(("What", "Where", "How much"), damage)
    click.echo()
    is_damaged = bool(report.corrupt or report.unreadable)
    verdict = output.mark("damaged", "red") if is_damaged else output.mark("events are missing", "red")
    click.echo(output.mark("intact", "green") if report.is_intact else verdict)
    return report.is_intact


def _damage(report: VerifyReport) -> Iterator[tuple[str, str, str]]:
    for corrupt in report.corrupt:
        yield "corrupt", f"{corrupt.segment} at {corrupt.offset}", f"{corrupt.length} bytes"
    for gap in report.gaps:
        yield "missing", f"{gap.segment} from event {gap.seq}", f"{gap.n_events} events"
    for name in report.unreadable:
        yield "unreadable segment", name, ""
    for name in report.ignored:
        yield "ignored", name, "not a file of the spool"


@spool.command("dump")
@place_options
@click.option(
    "--from",
    "position",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Number of the first event.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many lines.")
@click.option("--frames", "by_frame", is_flag=True, help="One line for each frame: where it lies, not what is in it.")
def dump(
    config_path: Path, log_path: Path | None, shard: str | None, position: int, limit: int | None, *, by_frame: bool
) -> None:
    """Print what is stored as JSON lines: each event with its number and what is known of its request.

    With several shards: one after the other, each line with the name of its shard.
    """
    paths = _places(config_path, log_path, shard)
    if position:
        only_shard(paths, "--from")
    lines = chain.from_iterable(_lines(path, position, by_frame=by_frame, named=len(paths) > 1) for path in paths)
    for line in islice(lines, limit):
        output.data(line)


def _lines(path: Path, position: int, *, by_frame: bool, named: bool) -> Iterator[str]:
    from edge.spool import inspect

    frames = inspect.dump(path, position)
    lines = map(_frame_line, frames) if by_frame else _event_lines(frames, position)
    return (f'{{"shard":"{path.name}",{line[1:]}' for line in lines) if named else iter(lines)


def _kind(frame: Frame) -> str:
    from edge.spool.format import EVENTS, MARK, REPLAY

    return {EVENTS: "events", REPLAY: "replay", MARK: "mark"}.get(frame.kind, str(frame.kind))


def _frame_line(frame: Frame) -> str:
    import orjson

    where = {"segment": frame.segment, "offset": frame.offset, "bytes": len(frame.payload)}
    return orjson.dumps({"seq": frame.seq, "kind": _kind(frame), "events": frame.n_events, **where}).decode()


def _event_lines(frames: Iterator[Frame], position: int) -> Iterator[str]:
    """Yield a line for each event; a frame without events (a mark) is one line with its metadata."""
    import orjson

    from edge.event import unpack

    for frame in frames:
        try:
            meta, lines = unpack(frame.payload)
        except ValueError:
            yield orjson.dumps({"seq": frame.seq, "kind": _kind(frame), "unreadable": len(frame.payload)}).decode()
            continue
        if not lines:
            yield orjson.dumps({"seq": frame.seq, "kind": _kind(frame), "meta": meta}).decode()
        for seq, line in enumerate(lines, frame.seq):
            if seq >= position:
                head = orjson.dumps({"seq": seq, "kind": _kind(frame), "meta": meta}).decode()
                # The stored bytes as they are: parsing and writing them again would show something else.
                yield f'{head[:-1]},"event":{line.decode("utf-8", "replace")}}}'
