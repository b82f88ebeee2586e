from __future__ import annotations

import random
from itertools import pairwise

import pytest

from edge.config.model import RetryOptions
from edge.delivery.backoff import Backoff
from edge.delivery.circuit import FAILURES_TO_OPEN, PROBE_SECS, CircuitBreaker, CircuitState

OPTIONS = RetryOptions(0.5, 60.0, None)


@pytest.fixture
def breaker() -> CircuitBreaker:
    return CircuitBreaker(random.Random(3), OPTIONS)


def fail(breaker: CircuitBreaker, times: int, now: float = 0.0) -> list[bool]:
    opened = []
    for _ in range(times):
        breaker.begin()
        opened.append(breaker.fail(now, 0.0))
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
    assert breaker.fail(0.0, 0.0, open_circuit=True) is True
    assert breaker.state is CircuitState.OPEN


def test_circuit_lets_one_probe_through_per_interval(breaker: CircuitBreaker) -> None:
    fail(breaker, 5)
    now, probes = 0.0, []
    while now < 100.0:
        if breaker.wait_secs(now) == 0:
            breaker.begin()
            assert breaker.state is CircuitState.HALF_OPEN
            probes.append(now)
            assert breaker.fail(now, 0.0) is False
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
    breaker.fail(10.0, 120.0, open_circuit=True)
    assert breaker.wait_secs(10.0) == 120.0
    assert breaker.wait_secs(130.0) == 0.0


def probe_gaps(options: RetryOptions, seed: int, n_probes: int = 200) -> list[float]:
    """Return the times between the probes of a target that stays away."""
    rng = random.Random(seed)
    breaker, backoff = CircuitBreaker(rng, options), Backoff(options, rng)
    now, gaps = 0.0, []
    while len(gaps) < n_probes:
        breaker.begin()
        breaker.fail(now, backoff.next_secs())
        if breaker.state is CircuitState.OPEN:
            gaps.append(breaker.wait_secs(now))
        now += breaker.wait_secs(now)
    return gaps


@pytest.mark.parametrize("seed", range(5))
def test_probes_grow_rare_up_to_the_longest_wait(seed: int) -> None:
    gaps = probe_gaps(OPTIONS, seed)
    assert min(gaps) >= PROBE_SECS - 1e-9
    assert gaps[0] <= 8.0
    assert 50.0 < max(gaps) <= OPTIONS.max_secs + 1e-9
    assert sum(gaps[20:]) / len(gaps[20:]) > 25.0


@pytest.mark.parametrize("longest", [0.1, 3.0, 5.2])
def test_probes_keep_to_a_longest_wait_that_is_short(longest: float) -> None:
    gaps = probe_gaps(RetryOptions(0.05, longest, None), 1)
    assert min(gaps) >= min(PROBE_SECS, longest) - 1e-9
    assert max(gaps) <= longest + 1e-9
