"""Which dead letters are meant: the filters of `edge dead-letters list | show | replay | drop`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class Selectable(Protocol):
    """What a filter looks at."""

    @property
    def id(self) -> int:
        """The letter's number in its store."""

    @property
    def sink(self) -> str:
        """The sink that gave the event up."""

    @property
    def reason(self) -> str:
        """Why."""

    @property
    def died_at(self) -> datetime:
        """When."""

    @property
    def event_id(self) -> str:
        """The event's own id, empty when it has none."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters that must all hold; one that is None holds always."""

    sink: str | None = None
    reason: str | None = None
    since: datetime | None = None
    """Died at this time or later; with an offset."""
    until: datetime | None = None
    """Died before this time; with an offset."""
    event_id: str | None = None
    seqs: frozenset[int] | None = None
    """Ids of letters."""

    def matches(self, letter: Selectable) -> bool:
        """Return whether a dead letter is meant. The event is parsed only when `event_id` asks for it."""
        return (
            (self.seqs is None or letter.id in self.seqs)
            and (self.sink is None or letter.sink == self.sink)
            and (self.reason is None or letter.reason == self.reason)
            and (self.since is None or letter.died_at >= self.since)
            and (self.until is None or letter.died_at < self.until)
            and (self.event_id is None or letter.event_id == self.event_id)
        )


EVERYTHING = Selection()
