from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.delivery.seqset import SeqSet

steps = st.lists(st.tuples(st.sampled_from(["add", "discard", "below", "from"]), st.integers(0, 60)), max_size=120)


@given(steps)
def test_seqset_behaves_like_a_set(actions: list[tuple[str, int]]) -> None:
    ranges, plain, end = SeqSet(), set(), 0
    for action, number in actions:
        if action == "add":
            end += number % 3
            ranges.add(end)
            plain.add(end)
            end += 1
        elif action == "discard":
            assert ranges.discard(number) is (number in plain)
            plain.discard(number)
        elif action == "from":
            ranges.discard_from(number)
            plain = {seq for seq in plain if seq < number}
        else:
            assert ranges.discard_below(number) == len([seq for seq in plain if seq < number])
            plain = {seq for seq in plain if seq >= number}
        assert len(ranges) == len(plain)
        assert list(ranges) == sorted(plain)
        assert ranges.lowest == min(plain, default=None)
        assert all((seq in ranges) is (seq in plain) for seq in range(-1, end + 2))


def test_seqset_ignores_a_number_that_is_not_the_largest() -> None:
    ranges = SeqSet()
    for seq in (5, 6, 3):
        ranges.add(seq)
    assert list(ranges) == [5, 6]
