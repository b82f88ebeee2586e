"""A set of sequence numbers kept as ranges: dead letters come in runs, and millions of them must fit in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class SeqSet:
    """Sequence numbers as sorted, disjoint ranges. Adding at the end and removing runs are cheap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __contains__(self, seq: int) -> bool:
        index = bisect_right(self._starts, seq) - 1
        return index >= 0 and seq < self._ends[index]

    def __iter__(self) -> Iterator[int]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield from range(start, end)

    def copy(self) -> SeqSet:
        """Return an independent set with the same members."""
        other = SeqSet()
        other._starts, other._ends, other._len = self._starts.copy(), self._ends.copy(), self._len
        return other

    @property
    def lowest(self) -> int | None:
        """The smallest member."""
        return self._starts[0] if self._starts else None

    def add(self, seq: int) -> None:
        """Add a number that is larger than every member; a smaller one is ignored (only foreign files give those)."""
        if self._ends and seq < self._ends[-1]:
            return
        if self._ends and self._ends[-1] == seq:
            self._ends[-1] = seq + 1
        else:
            self._starts.append(seq)
            self._ends.append(seq + 1)
        self._len += 1

    def discard(self, seq: int) -> bool:
        """Remove a number; return whether it was a member."""
        index = bisect_right(self._starts, seq) - 1
        if index < 0 or seq >= self._ends[index]:
            return False
        start, end = self._starts[index], self._ends[index]
        if start == seq:
            self._starts[index] = seq + 1
        elif end == seq + 1:
            self._ends[index] = seq
        else:
            self._starts.insert(index + 1, seq + 1)
            self._ends.insert(index, seq)
        if self._starts[index] == self._ends[index]:
            del self._starts[index], self._ends[index]
        self._len -= 1
        return True

    def discard_all(self, seqs: Iterable[int]) -> list[int]:
        """Remove numbers; return those that were members."""
        return [seq for seq in seqs if self.discard(seq)]

    def discard_from(self, seq: int) -> None:
        """Remove every member that is not smaller than `seq`."""
        while self._starts and self._ends[-1] > seq:
            start, end = self._starts.pop(), self._ends.pop()
            self._len -= end - max(start, seq)
            if start < seq:
                self._starts.append(start)
                self._ends.append(seq)

    def discard_below(self, seq: int) -> int:
        """Remove every member smaller than `seq`; return how many there were."""
        before = self._len
        while self._starts and self._starts[0] < seq:
            start, end = self._starts[0], self._ends[0]
            if end <= seq:
                del self._starts[0], self._ends[0]
                self._len -= end - start
            else:
                self._starts[0] = seq
                self._len -= seq - start
        return before - self._len
