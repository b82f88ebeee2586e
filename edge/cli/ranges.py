"""Replays a range of the spool to one sink: here when no gateway runs, else by asking the one that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from edge.api import EdgeError
from edge.cli.admin import AdminError, post
from edge.cli.moving import begin_cursor
from edge.cli.shards import named
from edge.config.model import GatewayConfig
from edge.delivery.replay_range import (
    AppendedElsewhere,
    Range,
    RangeInterruptedError,
    RangeReport,
    events_of,
    oldest_received_at,
    received_at,
    replay_page,
)
from edge.event import parse_time
from edge.gateway import SHARD, open_spool
from edge.spool.cursor import load_cursor
from edge.spool.errors import SpoolLockedError
from edge.spool.inspect import dump, stats
from edge.spool.log import Log


@dataclass(slots=True)
class RangeTotal:
    """What is asked for, and how far it is. The one who asks keeps it, whatever becomes of the work."""

    shard: str
    sink: str
    since: datetime
    until: datetime
    position: int
    """Where to go on."""
    first: int = 0
    """Where it began."""
    end: int = 0
    matched: int = 0
    moved: int = 0
    lost: int = 0
    unreadable: int = 0
    pending: int = 0
    """Events that the sink has yet to get anyway."""
    oldest: datetime | None = None
    """When the oldest events were received that are in the spool and that the sink has had; None when none are."""

    def add(self, report: RangeReport) -> None:
        """Go on with what one page did."""
        self.position = report.position
        self.matched += report.matched
        self.moved += report.moved
        self.lost += report.lost
        self.unreadable += report.unreadable


Hear = Callable[[], None]
"""Is told after every page that the total has changed."""


def survey(config: GatewayConfig, total: RangeTotal) -> None:
    """Count what would be replayed, by reading the files; nothing is changed, a gateway may run."""
    path = config.spool.path / total.shard
    found = stats(path)
    cursor = load_cursor(path, total.sink)
    total.end = found.next_seq if cursor is None else min(cursor.position, found.next_seq)
    total.pending = found.next_seq - total.end
    total.position = total.first = max(total.position, found.first_seq)
    wanted = Range(total.since, total.until, total.end)
    report = RangeReport(total.position)
    for frame in dump(path):
        if frame.seq >= total.end:
            break
        total.oldest = total.oldest or received_at(frame)
        if frame.end > total.position:
            events_of(frame, wanted, total.position, report)
    report.position = total.end
    total.add(report)


def replay(config: GatewayConfig, total: RangeTotal, hear: Hear) -> bool:
    """Replay the range; return whether a running gateway did it. Raises what stops it; `total` says how far it came."""
    try:
        target = open_spool(config.spool)
    except SpoolLockedError:
        _ask(config, total, hear)
        return True
    asyncio.run(_replay(config, target, total, hear))
    return False


async def _replay(config: GatewayConfig, target: Log, total: RangeTotal, hear: Hear) -> None:
    target.start(asyncio.get_running_loop())
    source = target
    try:
        begin_cursor(config, target, total.sink)
        if total.shard != SHARD:
            source = open_spool(config.spool, shard=total.shard)
            source.start(asyncio.get_running_loop())
        spool = AppendedElsewhere(source, target)
        cursor = load_cursor(config.spool.path / total.shard, total.sink)
        # A damaged cursor: the sink gets all that is in the spool at the next start.
        total.end = spool.first_seq if cursor is None else min(cursor.position, source.durable_seq)
        total.pending = source.durable_seq - total.end
        total.position = total.first = max(total.position, spool.first_seq)
        total.oldest = await oldest_received_at(spool, total.end)
        wanted = Range(total.since, total.until, total.end)
        while total.position < total.end:
            before = total.position
            try:
                total.add(await replay_page(spool, total.sink, wanted, before))
            except RangeInterruptedError as error:
                total.add(error.report)
                raise
            hear()
            if total.position <= before:
                return
    finally:
        await target.close()
        if source is not target:
            await source.close()


def _ask(config: GatewayConfig, total: RangeTotal, hear: Hear) -> None:
    what = {
        "sink": total.sink,
        "since": total.since.isoformat(),
        "until": total.until.isoformat(),
        **named(total.shard),
    }
    end: dict[str, int] = {}
    while True:
        before = total.position
        try:
            answer = post(config.admin, "/spool/replay", {**what, "position": before, **end})
        except AdminError as error:
            if "position" in error.answer:
                total.add(_report(error.answer))
            raise
        if not end:
            total.first, total.pending = int(answer["first"]), int(answer["pending"])
            total.oldest = None if answer["oldest"] is None else parse_time(answer["oldest"])
        total.add(_report(answer))
        total.end = int(answer["end"])
        end = {"end": total.end}
        hear()
        if total.position >= total.end or total.position <= before:
            return


def _report(answer: dict[str, object]) -> RangeReport:
    try:
        return RangeReport(**{name: int(str(answer[name])) for name in RangeReport.__slots__})
    except (KeyError, ValueError) as error:
        raise EdgeError("the gateway's answer is not one of this version's: use the edge that belongs to it") from error
