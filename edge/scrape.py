"""The metrics of several processes as those of one gateway: snapshots of a registry, and how they add up.

A process that takes the place of a dead one goes on from what that one had counted: what a scrape has shown once never
becomes less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from edge.metrics import TABLE, Across

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Name of a family, name of a sample in it, and its labels."""
Samples = dict[Key, float]

CUMULATIVE: Final = frozenset(row.family for row in TABLE if row.is_cumulative)
_ACROSS: Final[dict[str, Across]] = {row.family: row.across for row in TABLE}


def take(registry: Any) -> Samples:
    """Return the samples of a registry."""
    return {
        (family.name, sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def pack(samples: Samples) -> bytes:
    """Return samples as bytes for another process."""
    return orjson.dumps([[*key, value] for key, value in samples.items()])


def unpack(data: bytes) -> Samples:
    """Return samples out of bytes; none out of nothing."""
    if not data:
        return {}
    return {
        (family, name, tuple((label, text) for label, text in labels)): value
        for family, name, labels, value in orjson.loads(data)
    }


def cumulative(samples: Samples) -> Samples:
    """Return the samples of counters and histograms: what stays true of a process that is gone."""
    return {key: value for key, value in samples.items() if key[0] in CUMULATIVE}


def together(parts: Iterable[Samples]) -> Samples:
    """Return the samples of several processes as one: sums, except where the table of metrics says otherwise."""
    total: Samples = {}
    for part in parts:
        for key, value in part.items():
            before = total.get(key)
            total[key] = value if before is None else _add(key, before, value)
    return total


def _add(key: Key, one: float, other: float) -> float:
    if key[1].endswith("_created"):
        return min(one, other)
    across = _ACROSS.get(key[0], "sum")
    if across == "max":
        return max(one, other)
    return min(one, other) if across == "min" else one + other


class Scrape(Collector):
    """Samples as Prometheus is to see them, in the order of the table of metrics."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each row of the table."""
        found: dict[str, list[tuple[Key, float]]] = {}
        for item in self._samples.items():
            found.setdefault(item[0][0], []).append(item)
        for row in TABLE:
            family = Metric(row.family, row.help, row.exposed_as)
            for (_, name, labels), value in found.get(row.family, ()):
                family.add_sample(name, dict(labels), value)
            yield family


def registry_of(samples: Samples) -> CollectorRegistry:
    """Return a registry to be encoded that has these samples."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Scrape(samples))
    return registry
