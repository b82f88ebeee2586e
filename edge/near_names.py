"""Did you mean: the known name next to a misspelt one, at a cost that no sender can drive up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class NearNames:
    """Finds the known name that a sent one was meant to be: other case or separators, or about one slip of the finger.

    Names are looked up with each one letter left out, which costs a few microseconds for each name, whatever was sent.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._max_chars = 2 * max(map(len, names))
        self._names: dict[str, str] = {}
        for name in names:
            self._names[self._plain(name)] = name
        for name in names:
            for variant in self._shortened(self._plain(name)):
                self._names.setdefault(variant, name)

    def get(self, sent: str) -> str | None:
        """Return the known name next to this one, or None."""
        if len(sent) > self._max_chars:
            return None
        plain = self._plain(sent)
        return next((self._names[v] for v in (plain, *self._shortened(plain)) if v in self._names), None)

    @staticmethod
    def _plain(name: str) -> str:
        return name.lower().replace("_", "").replace("-", "").replace(" ", "")

    @staticmethod
    def _shortened(name: str) -> Iterator[str]:
        return (name[:at] + name[at + 1 :] for at in range(len(name)))
