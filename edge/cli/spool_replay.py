"""`edge spool replay`: deliver events of a time again to one sink, as far as the spool still holds them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.api import EdgeError
from edge.cli import output
from edge.cli.common import (
    DEFAULT_CONFIG,
    NEGATIVE,
    config_option,
    fail,
    interruptible,
    load_config,
    load_registry,
    refuse_root,
)
from edge.cli.dead_letters import Moment
from edge.cli.shards import only_shard, shard_option, shards_of

if TYPE_CHECKING:
    from edge.cli.ranges import RangeTotal


@click.command("replay")
@config_option
@click.option("--sink", required=True, metavar="ID", help="The sink that is to get them again. No other one does.")
@click.option("--since", required=True, type=Moment(), help="Received at this time or later; 24h is an age.")
@click.option("--until", type=Moment(), help="Received before this time. Default: now.")
@click.option(
    "--from",
    "position",
    type=click.IntRange(min=0),
    metavar="POSITION",
    default=0,
    help="Go on at this event: what an interrupted replay printed.",
)
@shard_option
@click.option("--dry-run", is_flag=True, help="Only count what would be replayed.")
def replay(
    config_path: Path,
    sink: str,
    since: datetime,
    until: datetime | None,
    position: int,
    shard: str | None,
    *,
    dry_run: bool,
) -> None:
    """Deliver events again to one sink, by when they were received, as far as they are still in the spool.

    Delivered events stay there for `spool.retain_secs`, and as long as another sink needs them. What the sink has yet
    to get is not part of the range: it gets that anyway. The sink's `when` is asked again. Works on a running gateway
    and on a stopped one, whose sink gets them at its next start. Interrupted, it prints the command that goes on: what
    was under way, a mebibyte of events at most, is delivered twice. Exit 1 when nothing is replayed.
    """
    from edge.cli import ranges

    config = load_config(config_path, load_registry())
    known = [one.id for one in config.sinks]
    if sink not in known:
        fail(f"no sink {sink}; there are {', '.join(known)}")
    until = until or datetime.now(UTC)
    if until <= since:
        raise click.UsageError("--until must be later than --since")
    paths = shards_of(config, shard)
    if position:
        only_shard(paths, "--from")
    totals = [ranges.RangeTotal(path.name, sink, since, until, position) for path in paths]
    if dry_run:
        for total in totals:
            ranges.survey(config, total)
        _explain(totals, config.spool.retain_secs)
        click.echo(f"{sink}: {sum(total.matched for total in totals)} events would be replayed")
        return
    refuse_root(config.spool.path)
    is_running = False
    for index, total in enumerate(totals):
        try:
            with interruptible(), output.progress("replay") as advance:
                is_running = ranges.replay(
                    config,
                    total,
                    lambda total=total: advance(total.position - total.first, total.end - total.first),  # type: ignore[misc]
                )
        except (EdgeError, OSError, KeyboardInterrupt) as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            how_far = f"{sum(one.moved for one in totals)} events were replayed to {sink} before. To go on:"
            commands = [
                _command(config_path, one, named=len(totals) > 1 or shard is not None) for one in totals[index:]
            ]
            fail("\n".join([reason, how_far, *(f"  {command}" for command in commands)]))
    _explain(totals, config.spool.retain_secs)
    moved = sum(total.moved for total in totals)
    click.echo(f"{sink}: {moved} events replayed{'' if is_running else '; it gets them at the next start'}")


def _command(config_path: Path, total: RangeTotal, *, named: bool) -> str:
    """Return the command that goes on where this one stopped."""
    words = ["edge", "spool", "replay", "--sink", total.sink]
    words += ["--since", total.since.isoformat(), "--until", total.until.isoformat(), "--from", str(total.position)]
    if named:
        words += ["--shard", total.shard]
    return shlex.join(words if config_path == DEFAULT_CONFIG else [*words, "-c", str(config_path)])


def _explain(totals: Sequence[RangeTotal], retain_secs: float) -> None:
    """Say what of the range is not there; leave with 1 when nothing is."""
    kept = f"events that every sink has had are kept for spool.retain_secs, which is {retain_secs:g}"
    sink, since = totals[0].sink, totals[0].since
    moments = [total.oldest for total in totals if total.oldest is not None]
    oldest = min(moments).isoformat(timespec="seconds") if moments else None
    matched = sum(total.matched for total in totals)
    notes = []
    if oldest is None:
        notes.append(f"the spool holds nothing any more that {sink} has had: {kept}")
    elif not matched:
        notes.append(f"nothing of that time is in the spool; its oldest events were received at {oldest}: {kept}")
    elif min(moments) > since and any(total.first > 0 for total in totals):
        notes.append(f"what was received before {oldest} is not in the spool any more: {kept}")
    for n_events, what in (
        (sum(total.pending for total in totals), f"are still pending for {sink}: it gets them without a replay"),
        (sum(total.lost for total in totals), "of the range were missing: released meanwhile, or lost"),
        (sum(total.unreadable for total in totals), "of the range cannot be read"),
    ):
        if n_events:
            notes.append(f"{n_events} events {what}")
    for note in notes:
        click.echo(note, err=True)
    if not matched:
        click.echo("nothing matches", err=True)
        raise SystemExit(NEGATIVE)
