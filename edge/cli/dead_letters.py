"""`edge dead-letters`: look at what sinks gave up on, deliver it again, or let it go.

Looking reads the files and needs no lock. Replay and drop change them: a running gateway, which holds the locks, is
asked to do it through its admin listener; with none running, the command does it itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from edge.api import EdgeError
from edge.cli import output
from edge.cli.common import (
    NEGATIVE,
    OrderedGroup,
    config_option,
    fail,
    interruptible,
    load_config,
    load_registry,
    refuse_root,
)

if TYPE_CHECKING:
    from edge.config.model import GatewayConfig
    from edge.delivery.dead_letters import DeadLetter, DeadLetterStore
    from edge.delivery.selection import Selection

Command = TypeVar("Command", bound=Callable[..., Any])

GO_ON: Final = {
    "replay": "The rest is where it was: run the same command again to go on; at most 200 are delivered twice.",
    "drop": "The rest is where it was: run the same command again to go on.",
}
"""What to do after an interruption, by action."""


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on, and not subscriptable before
    """A time in ISO 8601 (UTC when it names no offset), or an age such as ``90m``, ``24h``, ``7d``."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time, with an offset."""
        from datetime import timedelta

        if isinstance(value, datetime):
            return value
        units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
        if value[:-1].isdigit() and value[-1] in units and len(value) < 10:
            return datetime.now(UTC) - timedelta(**{units[value[-1]]: int(value[:-1])})
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value} is neither a time (2026-05-01T10:00:00Z) nor an age (90m, 24h, 7d)", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def selection_options(command: Command) -> Command:
    """Add the options that say which dead letters are meant."""
    for option in reversed(
        (
            config_option,
            click.option("--sink", metavar="ID", help="Only of this sink. Default: of every sink."),
            click.option("--reason", metavar="WORD", help="Only with this reason."),
            click.option("--since", type=Moment(), help="Given up on at this time or later; 24h is an age."),
            click.option("--until", type=Moment(), help="Given up on before this time."),
            click.option("--event-id", metavar="ID", help="Only the event with this event_id."),
            click.option(
                "--limit",
                type=click.IntRange(min=1),
                metavar="N",
                help="At most so many, the oldest of each sink first.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group("dead-letters", cls=OrderedGroup)
def dead_letters() -> None:
    """List, show, replay or drop the events that sinks gave up on.

    Works beside a running gateway and without one. Exit 1 when nothing matches.
    """


@dead_letters.command("list")
@selection_options
@click.option("--by-reason", is_flag=True, help="Count them by sink, reason and last error in place of listing them.")
def list_(config_path: Path, *, by_reason: bool, limit: int | None, **filters: Any) -> None:
    """List dead letters, oldest first."""
    _config, stores, selection = _open(config_path, filters)
    letters = _limited(stores, selection, limit)
    if by_reason:
        counts: Counter[tuple[str, str, str]] = Counter()
        for letter in letters:
            counts[letter.sink, letter.reason, letter.last_error] += 1
        _found(counts)
        output.table(
            ("Sink", "Reason", "Last error", "Events"), [(*key, number) for key, number in counts.most_common()]
        )
        return
    rows = [
        (
            letter.sink,
            letter.id,
            letter.died_at.isoformat(timespec="seconds"),
            letter.reason,
            letter.attempts,
            letter.event_id,
            letter.last_error,
        )
        for letter in letters
    ]
    _found(rows)
    output.table(("Sink", "Number", "Died at", "Reason", "Attempts", "Event id", "Last error"), rows)


@dead_letters.command("show")
@selection_options
def show(config_path: Path, *, limit: int | None, **filters: Any) -> None:
    """Print dead letters whole: one JSON object a line, with the event and everything known of its fate."""
    import orjson

    _config, stores, selection = _open(config_path, filters)
    shown = 0
    for letter in _limited(stores, selection, limit):
        meta = orjson.dumps({"number": letter.id, **letter.meta})
        # The event's own bytes, not parsed: what the target refused is shown as it was.
        output.data(f'{meta[:-1].decode()},"event":{letter.line.decode("utf-8", "replace")}}}')
        shown += 1
    _found(shown)


@dead_letters.command("replay")
@selection_options
@click.option("--dry-run", is_flag=True, help="Only count what would be replayed.")
def replay(config_path: Path, *, dry_run: bool, limit: int | None, **filters: Any) -> None:
    """Deliver dead letters again, each to the sink that gave it up.

    Each is put durably into the spool before it is taken out of the dead letters; interrupted at any point, even
    killed, the command can be run again: it goes on with the rest, and at most 200 are delivered twice. With no gateway
    running they are delivered at its next start.
    """
    _move("replay", config_path, filters, limit, dry_run=dry_run)


@dead_letters.command("drop")
@selection_options
@click.option("--dry-run", is_flag=True, help="Only count what would be dropped.")
@click.option("--all", "everything", is_flag=True, help="Needed when nothing else narrows down which are dropped.")
def drop(config_path: Path, *, dry_run: bool, everything: bool, limit: int | None, **filters: Any) -> None:
    """Let dead letters go for good. There is no way back."""
    if not (everything or dry_run or limit or any(filters.values())):
        raise click.UsageError("this would drop every dead letter of every sink; narrow it down, or add --all")
    _move("drop", config_path, filters, limit, dry_run=dry_run)


def _open(config_path: Path, filters: dict[str, Any]) -> tuple[GatewayConfig, list[DeadLetterStore], Selection]:
    """Return the configuration, the stores that are meant and what is meant in them."""
    config = load_config(config_path, load_registry())
    from edge.delivery.dead_letters import DeadLetterStore
    from edge.delivery.selection import Selection

    folder, wanted = config.dead_letters.path, filters["sink"]
    # A sink that was taken out of the configuration may have left letters; they can be read and dropped still.
    known = [sink.id for sink in config.sinks]
    left = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    names = list(dict.fromkeys([*known, *left]))
    if wanted is not None and wanted not in names:
        fail(f"no sink {wanted}; there are {', '.join(names)}")
    letters = config.dead_letters
    stores = [
        DeadLetterStore(folder, name, segment_bytes=letters.segment_bytes, max_bytes=letters.max_bytes)
        for name in names
        if wanted in (None, name)
    ]
    return config, stores, Selection(**{name: value for name, value in filters.items() if name != "sink"})


def _limited(stores: Sequence[DeadLetterStore], selection: Selection, limit: int | None) -> Iterator[DeadLetter]:
    for store in stores:
        yield from islice(store.entries(selection), limit)


def _found(what: Any) -> None:
    if not what:
        click.echo("nothing matches", err=True)
        raise SystemExit(NEGATIVE)


def _move(
    action: Literal["replay", "drop"], config_path: Path, filters: dict[str, Any], limit: int | None, *, dry_run: bool
) -> None:
    """Replay or drop what is meant, sink by sink, and print how many."""
    from edge.cli.moving import move

    config, stores, selection = _open(config_path, filters)
    chosen = {store.sink: [letter.id for letter in islice(store.entries(selection), limit)] for store in stores}
    chosen = {sink: ids for sink, ids in chosen.items() if ids}
    _found(chosen)
    configured = {sink.id for sink in config.sinks}
    if action == "replay" and (gone := sorted(set(chosen) - configured)):
        # Without --sink these were not asked for by name: the others can go on.
        said = f"sink {gone[0]} is not in the configuration any more; its dead letters can only be dropped"
        chosen = {sink: ids for sink, ids in chosen.items() if sink in configured}
        if not chosen:
            fail(said)
        click.echo(f"edge: left out: {said}", err=True)
    done = "replayed" if action == "replay" else "dropped"
    if dry_run:
        for sink, ids in chosen.items():
            click.echo(f"{sink}: {len(ids)} would be {done}")
        return
    refuse_root(config.spool.path)
    total, moved = sum(map(len, chosen.values())), 0
    try:
        with interruptible(), output.progress(action) as advance:

            def hear(number: int) -> None:
                nonlocal moved
                moved = number
                advance(number, total)

            hear(0)
            counts = move(config, action, chosen, stores, hear)
    except (EdgeError, OSError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        fail(f"{reason}\nAt least {moved} of {total} dead letters were {done}. {GO_ON[action]}")
    for sink in chosen:
        click.echo(f"{sink}: {counts[sink]} {done}")
