"""Dead letters as they lie in their log: how they are written, read, and told from those that were taken away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from edge.api import EventMetadata
from edge.delivery.selection import Selection
from edge.delivery.seqset import SeqSet
from edge.event import FrameMeta, event_metadata, pack, parse_time, unpack
from edge.spool.format import EVENTS, MARK, Frame, parse_segment_name
from edge.spool.inspect import dump
from edge.spool.log import Log

READ_BYTES = 1024 * 1024
LETTER_KEYS = ("sink", "reason", "attempts", "first_error", "last_error", "died_at", "replay_of")


class DeadLetterReason(StrEnum):
    """Why an event was given up on; a closed set."""

    PERMANENT = "permanent"
    """The target refused it for good."""
    GAVE_UP = "gave_up"
    """It was retried for `retry.give_up_secs`."""
    INVALID_RESULT = "invalid_result"
    """The sink returned something that says nothing about what the target took."""
    POISON = "poison"
    """The process died each time it was being delivered."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One event about to become a dead letter."""

    line: bytes
    meta: FrameMeta
    """The metadata of the frame it was stored in."""
    reason: DeadLetterReason
    attempts: int
    first_error: str
    last_error: str
    died_at: datetime
    """UTC."""


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter as it is kept."""

    id: int
    """Its number in the store; never used again for another one."""
    line: bytes
    meta: FrameMeta
    """The metadata of the original frame, and the keys of this letter."""

    @property
    def sink(self) -> str:
        """The sink that gave the event up."""
        return str(self.meta.get("sink", ""))

    @property
    def reason(self) -> str:
        """One of `DeadLetterReason`, unless another version wrote it."""
        return str(self.meta.get("reason", ""))

    @property
    def attempts(self) -> int:
        """How many attempts the event took part in."""
        value = self.meta.get("attempts", 0)
        return value if isinstance(value, int) else 0

    @property
    def first_error(self) -> str:
        """The first thing that went wrong."""
        return str(self.meta.get("first_error", ""))

    @property
    def last_error(self) -> str:
        """The last thing that went wrong."""
        return str(self.meta.get("last_error", ""))

    @cached_property
    def died_at(self) -> datetime:
        """When it was given up on, UTC."""
        return parse_time(str(self.meta.get("died_at", "")))

    @cached_property
    def event_id(self) -> str:
        """The event's `event_id`, or empty. Parses the event."""
        try:
            event = orjson.loads(self.line)
        except ValueError:
            return ""
        value = event.get("event_id") if isinstance(event, dict) else None
        return value if isinstance(value, str) else ""

    @property
    def metadata(self) -> EventMetadata:
        """What was stored beside the event when it was accepted."""
        return event_metadata(self.meta)

    @property
    def original_meta(self) -> FrameMeta:
        """The metadata of the frame that held the event, without what the letter added."""
        return _original(self.meta)


def _original(meta: FrameMeta) -> FrameMeta:
    return {key: value for key, value in meta.items() if key not in LETTER_KEYS}


def letter_payload(sink: str, letter: Letter) -> bytes:
    """Return the payload of the frame that keeps a letter; the same letter gives the same bytes."""
    return pack(
        {
            **_original(letter.meta),
            "sink": sink,
            "reason": str(letter.reason),
            "attempts": letter.attempts,
            "first_error": letter.first_error,
            "last_error": letter.last_error,
            "died_at": letter.died_at.isoformat(),
        },
        [letter.line],
    )


def read_letters(path: Path, selection: Selection, live: SeqSet | None) -> Iterator[DeadLetter]:
    """Yield the letters under a directory that are meant; without `live`, its marks are read first. Blocks."""
    start, stop = (
        (0, None) if selection.seqs is None else (min(selection.seqs, default=0), max(selection.seqs, default=0))
    )
    if live is None:
        live = live_seqs(path, start)
    if not live:
        return
    for frame in dump(path, start):
        if stop is not None and frame.seq > stop:
            return
        if frame.kind == EVENTS and frame.seq in live:
            letter = _letter(frame)
            if letter is not None and selection.matches(letter):
                yield letter


def _letter(frame: Frame) -> DeadLetter | None:
    """Return the letter in a frame; None for a frame that no store wrote."""
    try:
        meta, lines = unpack(frame.payload)
    except ValueError:
        return None
    return DeadLetter(frame.seq, lines[0], meta) if len(lines) == 1 else None


def frames_of(opened: Log, start: int = 0) -> Iterator[Frame]:
    """Yield the frames of an open log, from a position on. Blocks."""
    position = max(start, opened.first_seq)
    while position < opened.durable_seq:
        result = opened.read(position, READ_BYTES)
        yield from result.frames
        if result.position <= position:
            return
        position = result.position


def live_seqs(path: Path, start: int = 0) -> SeqSet:
    """Return the letters under a directory, from a number on, that no mark took away. Blocks."""
    return live_in(dump(path, start)) if path.is_dir() else SeqSet()


def live_in(frames: Iterable[Frame]) -> SeqSet:
    """Return the letters among frames that no mark among them took away."""
    live = SeqSet()
    marked: set[int] = set()
    for frame in frames:
        if frame.kind == EVENTS:
            live.add(frame.seq)
        elif frame.kind == MARK:
            marked.update(marked_by(frame.payload))
    live.discard_all(marked)
    return live


def marked_by(payload: bytes) -> list[int]:
    """Return the letters that a mark takes away."""
    try:
        meta, _ = unpack(payload)
    except ValueError:
        return []
    seqs: Any = meta.get("seqs")
    return [seq for seq in seqs if type(seq) is int] if isinstance(seqs, list) else []


def release_oldest(path: Path, opened: Log) -> tuple[int, int]:
    """Delete the oldest segment unless it is the only one; return where it ended and the bytes freed. Blocks."""
    starts = sorted(start for item in path.iterdir() if (start := parse_segment_name(item.name)) is not None)
    return (starts[1], opened.release(starts[1])) if len(starts) > 1 else (0, 0)
