from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config.model import RateLimit
from edge.http.ratelimit import RateLimiter


class HandClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, secs: float) -> None:
        self.now += secs


def limiter(events_per_sec: float = 10, burst_events: int = 20) -> tuple[RateLimiter, HandClock]:
    clock = HandClock()
    return RateLimiter({"web": RateLimit(events_per_sec, burst_events)}, clock), clock


def test_limiter_grants_a_burst_and_then_asks_to_wait() -> None:
    limits, _ = limiter()
    assert [limits.take("web", 1) for _ in range(20)] == [0.0] * 20
    assert limits.take("web", 1) == pytest.approx(0.1)
    assert limits.take("web", 5) == pytest.approx(0.5)


def test_limiter_takes_nothing_when_it_refuses() -> None:
    limits, _ = limiter()
    limits.take("web", 15)
    assert limits.take("web", 10) == pytest.approx(0.5)
    assert limits.take("web", 5) == 0.0


def test_limiter_fills_with_time_up_to_the_burst() -> None:
    limits, clock = limiter()
    limits.take("web", 20)
    clock.now += 1
    assert limits.take("web", 10) == 0.0
    assert limits.take("web", 1) > 0
    clock.now += 3600
    assert limits.take("web", 20) == 0.0
    assert limits.take("web", 1) > 0


def test_limiter_grants_after_the_wait_it_named() -> None:
    limits, clock = limiter(events_per_sec=3, burst_events=7)
    clock.now = 1e7 / 3
    for n_events in (7, 1, 2, 5, 7, 3, 11, 4):
        wait = limits.take("web", n_events)
        clock.now += wait
        assert wait == 0.0 or limits.take("web", n_events) == 0.0


def test_batch_larger_than_the_burst_is_granted_by_a_full_bucket_and_paid_for_afterwards() -> None:
    limits, clock = limiter()
    assert limits.take("web", 100) == 0.0
    assert limits.take("web", 1) == pytest.approx(8.1)
    assert limits.take("web", 100) == pytest.approx(10)
    clock.now += 8.1
    assert limits.take("web", 1) == 0.0
    assert limits.take("web", 100) == pytest.approx(2)
    clock.now += 2
    assert limits.take("web", 100) == 0.0


def test_key_without_limit_is_always_granted() -> None:
    limits, _ = limiter()
    assert [limits.take("server", 10**9) for _ in range(3)] == [0.0] * 3
    assert RateLimiter({}, HandClock()).take("anonymous", 1) == 0.0


def test_keys_do_not_share_a_bucket() -> None:
    limits = RateLimiter({"a": RateLimit(1, 1), "b": RateLimit(1, 1)}, HandClock())
    assert limits.take("a", 1) == 0.0
    assert limits.take("a", 1) > 0
    assert limits.take("b", 1) == 0.0


def test_request_without_events_is_granted_unless_there_is_debt() -> None:
    limits, _ = limiter()
    assert limits.take("web", 0) == 0.0
    limits.take("web", 100)
    assert limits.take("web", 0) > 0


def test_buckets_go_on_after_a_reload_when_their_limit_is_the_same() -> None:
    clock = HandClock()
    old = RateLimiter({"same": RateLimit(1, 5), "changed": RateLimit(1, 5), "gone": RateLimit(1, 5)}, clock)
    for key_id in ("same", "changed", "gone"):
        assert old.take(key_id, 5) == 0.0
    new = RateLimiter({"same": RateLimit(1, 5), "changed": RateLimit(1, 6), "added": RateLimit(1, 5)}, clock, old)
    assert new.take("same", 1) == pytest.approx(1)
    assert new.take("changed", 6) == 0.0
    assert new.take("gone", 10) == 0.0
    assert new.take("added", 5) == 0.0
    # Requests that began before the reload still draw from the same bucket.
    clock.now += 1
    assert old.take("same", 1) == 0.0
    assert new.take("same", 1) > 0


@pytest.mark.parametrize("limit", [RateLimit(0, 1), RateLimit(-1, 1), RateLimit(1, 0), RateLimit(float("nan"), 1)])
def test_limit_that_grants_nothing_is_refused(limit: RateLimit) -> None:
    with pytest.raises(ValueError, match="the rate limit of key web grants nothing"):
        RateLimiter({"web": limit}, HandClock())


@given(
    st.floats(0.1, 1e5),
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 20_000)), min_size=1, max_size=50),
)
@settings(deadline=None)
def test_limiter_never_grants_more_than_the_rate_allows(
    rate: float, burst: int, requests: list[tuple[float, int]]
) -> None:
    limits, clock = limiter(rate, burst)
    start, granted, last = clock.now, 0, 0
    for pause, n_events in requests:
        clock.now += pause
        wait = limits.take("web", n_events)
        assert wait >= 0
        if wait == 0.0:
            granted, last = granted + n_events, n_events
    # The last batch may be the one in debt; all before it is paid for.
    assert granted - max(0, last - burst) <= burst + (clock.now - start) * rate + 1
