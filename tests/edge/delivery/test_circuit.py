from __future__ import annotations

import random
from itertools import pairwise

import pytest

from edge.config.model import RetryOptions
from edge.delivery.circuit import FAILURES_TO_OPEN, CircuitBreaker, CircuitState, probe_secs


@pytest.fixture
def breaker() -> CircuitBreaker:
    return CircuitBreaker(random.Random(3), probe_secs=5.0)


def fail(breaker: CircuitBreaker, times: int, now: float = 0.0) -> list[bool]:
    opened = []
    for _ in range(times):
        breaker.begin()
        opened.append(breaker.fail(now))
    return opened


def test_circuit_opens_after_five_failures_in_a_row(breaker: CircuitBreaker) -> None:
    assert fail(breaker, FAILURES_TO_OPEN) == [False] * 4 + [True]
    assert breaker.state is CircuitState.OPEN


def test_circuit_counts_only_failures_in_a_row(breaker: CircuitBreaker) -> None:
    for _ in range(10):
        fail(breaker, 4)
        assert breaker.succeed() is False
    assert breaker.state is CircuitState.CLOSED


def test_circuit_opens_at_once_when_the_failure_asks_for_it(breaker: CircuitBreaker) -> None:
    breaker.begin()
    assert breaker.fail(0.0, open_circuit=True) is True
    assert breaker.state is CircuitState.OPEN


def test_circuit_lets_one_probe_through_per_interval(breaker: CircuitBreaker) -> None:
    fail(breaker, 5)
    now, probes = 0.0, []
    while now < 100.0:
        if breaker.wait_secs(now) == 0:
            breaker.begin()
            assert breaker.state is CircuitState.HALF_OPEN
            probes.append(now)
            assert breaker.fail(now) is False
        now += 0.01
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert min(gaps) >= 5.0
    assert max(gaps) <= 5.6


def test_circuit_closes_when_the_probe_succeeds(breaker: CircuitBreaker) -> None:
    fail(breaker, 5)
    breaker.begin()
    assert breaker.succeed() is True
    assert breaker.state is CircuitState.CLOSED
    assert fail(breaker, 4) == [False] * 4


def test_circuit_is_open_again_when_the_probe_was_cancelled(breaker: CircuitBreaker) -> None:
    fail(breaker, 5)
    breaker.begin()
    breaker.abandon()
    assert breaker.state is CircuitState.OPEN


def test_circuit_waits_for_retry_after_when_that_is_longer(breaker: CircuitBreaker) -> None:
    breaker.fail(10.0, open_circuit=True, retry_after=120)
    assert breaker.wait_secs(10.0) == 120.0
    assert breaker.wait_secs(130.0) == 0.0


@pytest.mark.parametrize(("initial", "longest", "expected"), [(0.5, 60, 5), (30, 300, 30), (0.01, 0.1, 0.1)])
def test_probe_interval_keeps_within_the_sinks_own_waits(initial: float, longest: float, expected: float) -> None:
    assert probe_secs(RetryOptions(initial, longest, None)) == expected
