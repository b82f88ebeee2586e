from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config.model import RetryOptions
from edge.delivery.backoff import MAX_RETRY_AFTER_SECS, Backoff, sane_retry_after


class Highest(random.Random):
    """Always the upper end of the range."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_backoff_doubles_up_to_the_longest_wait() -> None:
    backoff = Backoff(RetryOptions(0.5, 60.0, None), Highest())
    waits = [backoff.next_secs() for _ in range(10)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert backoff.failures == 10


def test_backoff_starts_over_after_a_reset() -> None:
    backoff = Backoff(RetryOptions(0.5, 60.0, None), Highest())
    for _ in range(5):
        backoff.next_secs()
    backoff.reset()
    assert backoff.next_secs() == 0.5


def test_backoff_jitters_over_the_whole_range() -> None:
    waits = [Backoff(RetryOptions(8.0, 60.0, None), random.Random(seed)).next_secs() for seed in range(200)]
    assert min(waits) < 1.0
    assert max(waits) > 7.0


def test_backoff_survives_a_hundred_thousand_failures() -> None:
    backoff = Backoff(RetryOptions(0.5, 60.0, None), random.Random(1))
    assert all(0.0 <= backoff.next_secs() <= 60.0 for _ in range(100_000))


@given(st.integers(0, 2**32), st.floats(0.001, 3600.0))
def test_backoff_never_waits_less_than_retry_after(seed: int, asked: float) -> None:
    backoff = Backoff(RetryOptions(0.5, 60.0, None), random.Random(seed))
    assert backoff.next_secs(asked) >= asked


@pytest.mark.parametrize("value", [None, math.nan, -1, -math.inf, "5", True, b"1", object(), 0])
def test_retry_after_that_is_no_wait_is_ignored(value: Any) -> None:
    assert sane_retry_after(value) == 0.0


@pytest.mark.parametrize("value", [math.inf, 1e18, 10**400])
def test_retry_after_is_at_most_a_day(value: Any) -> None:
    assert sane_retry_after(value) == MAX_RETRY_AFTER_SECS
