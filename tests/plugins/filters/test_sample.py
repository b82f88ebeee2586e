import math
from collections import Counter

import pytest
from edge_plugins.filters.sample import Sample

from edge.testing import OptionsError, build, make_event, run_filter

N_USERS = 20_000


def kept_users(**options):
    component = build(Sample, **options)
    return {user for user in range(N_USERS) if run_filter(component, {"user_id": f"usr_{user}"}) is None}


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_sample_keeps_its_share_of_users(rate):
    kept = len(kept_users(rate=rate))
    # Five standard deviations: one run in two million would fail by chance, and these ids never change.
    assert abs(kept - N_USERS * rate) < 5 * math.sqrt(N_USERS * rate * (1 - rate))


def test_sample_is_uniform_over_consecutive_ids():
    # Chi square of the kept users in 20 ranges of ids, 19 degrees of freedom: 43.8 is exceeded once in a thousand.
    kept = kept_users(rate=0.5)
    per_range = Counter(user * 20 // N_USERS for user in kept)
    expected = len(kept) / 20
    assert sum((per_range[index] - expected) ** 2 / expected for index in range(20)) < 43.8


def test_sample_keeps_a_user_whole_or_not_at_all():
    component = build(Sample, rate=0.5)
    for user in range(50):
        verdicts = {
            run_filter(component, make_event(user_id=f"u{user}", event_id=f"e{n}", event_name=f"n{n}"))
            for n in range(10)
        }
        assert len(verdicts) == 1
        assert verdicts <= {None, "sampled_out"}


def test_sample_decides_the_same_in_every_process():
    # Fixed for good: another verdict here would cut users in two at an upgrade.
    component = build(Sample, rate=0.5)
    verdicts = "".join("-" if run_filter(component, {"user_id": f"usr_{n}"}) else "K" for n in range(24))
    assert verdicts == "K---KK--K-KK--KKK-K-KK--"


def test_sample_with_a_lower_rate_keeps_a_part_of_what_a_higher_rate_keeps():
    assert kept_users(rate=0.1) < kept_users(rate=0.3)


def test_sample_selects_other_users_with_another_seed():
    one, other = kept_users(rate=0.2, seed="one"), kept_users(rate=0.2, seed=2)
    both = len(one & other)
    # Independent selections share rate * rate of the users.
    assert abs(both - N_USERS * 0.04) < 5 * math.sqrt(N_USERS * 0.04 * 0.96)


@pytest.mark.parametrize(("rate", "reason"), [(0, "sampled_out"), (1, None), (0.0, "sampled_out"), (1.0, None)])
def test_sample_keeps_none_or_all_at_the_ends(rate, reason):
    component = build(Sample, rate=rate)
    assert {run_filter(component, {"user_id": str(user)}) for user in range(1000)} == {reason}


def test_sample_reads_a_dotted_path():
    component = build(Sample, rate=0, by="commerce.order.id")
    assert run_filter(component, make_event(commerce={"order": {"id": 7}})) == "sampled_out"
    assert run_filter(component, make_event(commerce={"order": "id"})) is None


@pytest.mark.parametrize("event", [{}, {"user_id": None}, {"extras": {"user_id": "u"}}])
def test_sample_keeps_an_event_without_the_field(event):
    assert run_filter(build(Sample, rate=0), event) is None


def test_sample_takes_a_number_and_its_text_for_the_same_user():
    component = build(Sample, rate=0.5)
    for user in range(100):
        assert run_filter(component, {"user_id": user}) == run_filter(component, {"user_id": str(user)})


@pytest.mark.parametrize("value", [True, 1.5, -3, ["a"], {"b": 1, "a": 2}, "", "ü\u2028"])
def test_sample_hashes_any_value(value):
    assert run_filter(build(Sample, rate=0), {"user_id": value}) == "sampled_out"


@pytest.mark.parametrize("rate", [-0.1, 1.1, True, "0.5", float("nan"), None])
def test_sample_refuses_what_is_no_share(rate):
    with pytest.raises(OptionsError, match="rate: must be a number between 0 and 1"):
        build(Sample, rate=rate)


@pytest.mark.parametrize("options", [{"by": "a..b"}, {"by": ""}, {"by": 7}, {"seed": [1]}, {"seed": True}])
def test_sample_refuses_other_wrong_options(options):
    with pytest.raises(OptionsError):
        build(Sample, rate=0.5, **options)
