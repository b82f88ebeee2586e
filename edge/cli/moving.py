"""Replays or drops dead letters: here when no gateway runs, else by asking the one that runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from edge.cli.admin import AdminError, post
from edge.config.model import GatewayConfig
from edge.delivery import replay as moves
from edge.delivery.dead_letters import DeadLetterStore
from edge.delivery.selection import Selection
from edge.gateway import SHARD, open_spool
from edge.spool.cursor import Cursor, CursorFile
from edge.spool.errors import SpoolLockedError
from edge.spool.log import Log

Action = Literal["replay", "drop"]
Advance = Callable[[int], None]
"""Is told how many dead letters have been moved so far."""

PAGE: Final = 1000
"""Dead letters a running gateway is asked for at once."""


def move(
    config: GatewayConfig,
    action: Action,
    chosen: Mapping[str, Sequence[int]],
    stores: Sequence[DeadLetterStore],
    advance: Advance,
) -> Counter[str]:
    """Move the chosen dead letters (sink to their numbers) and return how many it was for each sink.

    Who holds the spool's lock may change dead letters: this process when it gets the lock, so that no gateway starts
    meanwhile, else the gateway that has it.
    """
    try:
        spool = open_spool(config.spool)
    except SpoolLockedError:
        return _ask(config, action, chosen, advance)
    return asyncio.run(_move(config, spool, action, chosen, {store.sink: store for store in stores}, advance))


def begin_cursor(config: GatewayConfig, spool: Log, sink: str) -> None:
    """See to it that a sink gets what is appended for it now: one without a cursor begins at the end when it starts."""
    file = CursorFile(config.spool.path / SHARD, sink)
    try:
        if file.load() is None and not file.is_damaged:
            file.save(Cursor(position=spool.durable_seq, base=spool.durable_seq))
    finally:
        file.close()


async def _move(
    config: GatewayConfig,
    spool: Log,
    action: Action,
    chosen: Mapping[str, Sequence[int]],
    stores: Mapping[str, DeadLetterStore],
    advance: Advance,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    spool.start(asyncio.get_running_loop())
    try:
        for sink, ids in chosen.items():
            store, selection = stores[sink], Selection(seqs=frozenset(ids))
            before = counts.total()

            def page(report: moves.ReplayReport, before: int = before) -> None:
                advance(before + report.moved)

            try:
                if action == "replay":
                    begin_cursor(config, spool, sink)
                    report = await moves.replay(store, spool, sink, selection, progress=page)
                else:
                    report = await moves.drop(store, selection, progress=page)
            finally:
                await store.close()
            counts[sink] = report.moved
    finally:
        await spool.close()
    return counts


def _ask(config: GatewayConfig, action: Action, chosen: Mapping[str, Sequence[int]], advance: Advance) -> Counter[str]:
    counts: Counter[str] = Counter()
    for sink, ids in chosen.items():
        for start in range(0, len(ids), PAGE):
            page = {"sink": sink, "seqs": list(ids[start : start + PAGE])}
            try:
                answer = post(config.admin, f"/dead-letters/{action}", page)
            except AdminError as error:
                advance(counts.total() + int(error.answer.get("moved", 0)))
                raise
            counts[sink] += int(answer.get("moved", 0))
            advance(counts.total())
    return counts
