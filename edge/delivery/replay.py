"""Dead letters on their way back: appended to the spool first, marked as replayed second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from edge.delivery.dead_letters import Action, DeadLetter, DeadLetterStore
from edge.delivery.selection import EVERYTHING, Selection
from edge.event import pack
from edge.spool.errors import SpoolBackpressureError
from edge.spool.format import REPLAY

PAGE_LETTERS = 200
"""Letters appended and then marked together: what an interruption between the two delivers twice at most."""
BUSY_SECS = 0.05
BUSY_TRIES = 200


class Appendable(Protocol):
    """The part of the spool's log that replay writes to."""

    def append(self, payload: bytes, n_events: int = 1, kind: int = REPLAY) -> asyncio.Future[int]:
        """Append a frame; the future resolves once it is durable."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay or a drop did."""

    matched: int
    """Letters that the selection meant."""
    moved: int
    """Letters taken away: now in the spool again, or dropped. 0 in a dry run."""


Progress = Callable[[ReplayReport], None]


async def replay(
    store: DeadLetterStore,
    log: Appendable,
    sink_id: str,
    selection: Selection = EVERYTHING,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ReplayReport:
    """Deliver dead letters again to their own sink, oldest first; `progress` hears of every page.

    Can be interrupted at any point and run again: what was marked is not moved twice, and what was appended and not
    yet marked (one page at most) is delivered twice. Raises the spool's errors; what was moved before stays moved.
    Letters that come in meanwhile, also events that die again, are left for the next run.
    """

    async def append(page: list[DeadLetter]) -> None:
        futures = []
        for letter in page:
            meta = {**letter.original_meta, "sink": sink_id, "replay_of": letter.id}
            futures.append(await append_patiently(log, pack(meta, [letter.line])))
        await asyncio.gather(*futures)

    return await _page_through(store, selection, "replayed", None if dry_run else append, progress)


async def drop(
    store: DeadLetterStore,
    selection: Selection = EVERYTHING,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ReplayReport:
    """Give dead letters up for good; `progress` hears of every page. Can be interrupted and run again."""

    async def nothing(_page: list[DeadLetter]) -> None:
        """A dropped letter goes nowhere before it is marked."""

    return await _page_through(store, selection, "dropped", None if dry_run else nothing, progress)


async def _page_through(
    store: DeadLetterStore,
    selection: Selection,
    action: Action,
    move: Callable[[list[DeadLetter]], Awaitable[None]] | None,
    progress: Progress | None,
) -> ReplayReport:
    """Move and mark page after page; without `move`, only count."""
    report = ReplayReport(0, 0)
    async with store.moving:
        letters = store.entries(selection)
        while page := await asyncio.to_thread(_next_page, letters):
            moved = 0
            if move is not None:
                await move(page)
                moved = await store.mark([letter.id for letter in page], action)
            report = ReplayReport(report.matched + len(page), report.moved + moved)
            if progress is not None:
                progress(report)
    return report


async def append_patiently(log: Appendable, payload: bytes, n_events: int = 1) -> asyncio.Future[int]:
    """Append one frame of events for one sink, waiting a while for room in the writer's queue."""
    for _ in range(BUSY_TRIES):
        try:
            return log.append(payload, n_events, REPLAY)
        except SpoolBackpressureError:
            await asyncio.sleep(BUSY_SECS)
    return log.append(payload, n_events, REPLAY)


def _next_page(letters: Iterator[DeadLetter]) -> list[DeadLetter]:
    return list(islice(letters, PAGE_LETTERS))
