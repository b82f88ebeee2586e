"""What one thread counts looks to Prometheus as what prometheus-client counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from edge.tallies import SpreadTally, Tally

BOUNDS = (0.001, 0.5, 1.0, 10.0)


def lines(registry: CollectorRegistry) -> set[str]:
    """Return the exposed lines but for the moments of creation."""
    return {
        line
        for line in generate_latest(registry).decode().splitlines()
        if "_created{" not in line and "_created " not in line
    }


@given(st.lists(st.tuples(st.sampled_from(["a", 'b"\n\\']), st.integers(0, 1000))))
def test_tally_is_exposed_as_a_counter(steps: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("edge_things_total", "Things.", ("kind",), ours)
    counter = Counter("edge_things_total", "Things.", ("kind",), registry=theirs)
    for kind, amount in steps:
        tally.add((kind,), amount)
        tally.labels(kind).inc(amount)
        counter.labels(kind).inc(amount)
        counter.labels(kind).inc(amount)
    assert lines(ours) == lines(theirs)


@given(st.lists(st.sampled_from(BOUNDS) | st.floats(0, 20)))
def test_spread_is_exposed_as_a_histogram(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spread = SpreadTally("edge_secs", "Seconds.", (), ours, BOUNDS).labels()
    histogram = Histogram("edge_secs", "Seconds.", buckets=BOUNDS, registry=theirs)
    for value in values:
        spread.observe(value)
        histogram.observe(value)
    assert lines(ours) == lines(theirs)


def test_a_scrape_by_name_finds_a_tally() -> None:
    registry = CollectorRegistry()
    Tally("edge_things_total", "Things.", (), registry).labels().inc(3)
    assert registry.get_sample_value("edge_things_total") == 3
    assert b"edge_things_total 3.0" in generate_latest(registry.restricted_registry(["edge_things_total"]))


def test_wrong_number_of_labels_is_an_error() -> None:
    tally = Tally("edge_things_total", "Things.", ("kind",), CollectorRegistry())
    with pytest.raises(ValueError, match="kind"):
        tally.labels()
    with pytest.raises(ValueError, match="kind"):
        tally.add((), 1)
