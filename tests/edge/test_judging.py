"""Judging all events of a request at once comes to the same as judging them one by one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.api import REMOVE, Context
from edge.binding import Step
from edge.example import EXAMPLE_EVENT
from edge.judging import (
    EVENT_DETAILS,
    FEW_EVENTS,
    Candidate,
    Candidates,
    Judged,
    Plan,
    Result,
    encode,
    joined,
    judge,
    judge_at_once,
    written,
)
from edge.outcomes import Outcome
from edge.pipeline import Pipeline
from edge.validation import Detail, EventValidator

CONTEXT = Context(datetime(2026, 1, 2, tzinfo=UTC), "192.0.2.7", "web", {})
MISTAKE = Detail(field="body", message="is nested deeper than 2 levels", code="json.limit")


class Silent:
    def component_timed(self, step: Step, duration_secs: float) -> None: ...
    def component_failed(self, step: Step, error: BaseException) -> None: ...


def step(id: str, call: Any, *, kind: Literal["enricher", "filter"] = "enricher", **options: Any) -> Step:
    return Step(
        **{
            "id": id, "type": id, "kind": kind, "call": call, "when": None, "on_error": "skip",
            "reasons": {"no": f"{id}.no"}, **options,
        }
    )  # fmt: skip


def fails_on_desktop(event: Any, context: Any) -> dict[str, Any]:
    if event.get("device_type") == "desktop":
        raise ValueError("desktop")
    return {"device": event.get("device_type", "none")}


def unwritable(event: Any, context: Any) -> None:
    if event["page_name"] == "unwritable":
        event.setdefault("extras", {})["x"] = {1, 2}  # what no component may do


STEPS = [
    step("adds", lambda event, context: {"received_at": "2026", "größe": "ü"}),
    step("renames", lambda event, context: {"event_id": "other"} if event["event_type"] == "scroll" else None),
    step("removes", lambda event, context: {"referrer": REMOVE, "n": 1}),
    step("drops", lambda event, context: "no" if event["event_name"] == "drop" else None, kind="filter"),
    step("fails", fails_on_desktop, on_error="reject"),
    step("unwritable", unwritable),
]


def plan(unknown_fields: Literal["reject", "keep", "drop"]) -> Plan:
    return Plan(EventValidator(unknown_fields, ()), Pipeline(STEPS, Silent()), 2000)


def at_once(plan: Plan, candidates: Candidates, context: Context) -> Result:
    result = judge_at_once(plan, candidates, context)
    assert result is not None
    return result


def test_many_events_of_which_one_is_not_usual_are_left_to_a_task() -> None:
    events = [dict(EXAMPLE_EVENT) for _ in range(FEW_EVENTS + 1)]
    assert judge_at_once(plan("reject"), Candidates(copy.deepcopy(events), 600), CONTEXT) is not None
    events[7]["device_type"] = "watch"
    assert judge_at_once(plan("reject"), Candidates(events, 600), CONTEXT) is None
    assert "received_at" not in events[0]  # nothing was done


def one_by_one(plan: Plan, candidates: Sequence[Candidate]) -> tuple[list[tuple[Any, ...]], bytes]:
    judged = [judge(plan, candidate, CONTEXT, EVENT_DETAILS) for candidate in candidates]
    _, lines = encode(judged)
    return [(item.outcome, item.reason, item.event_id, item.details) for item in judged], b"\n".join(lines)


INTEGERS = st.integers(-(2**63), 2**63)
EVENTS = st.builds(
    lambda changes, gone: {name: value for name, value in {**EXAMPLE_EVENT, **changes}.items() if name not in gone},
    st.fixed_dictionaries(
        {},
        optional={
            "event_id": st.text(max_size=3) | st.just("i" * 300) | st.just(7),
            "event_type": st.sampled_from(["scroll", "click"]),
            "event_name": st.sampled_from(["drop", "click"]),
            "page_name": st.sampled_from(["start", "p" * 3000]),
            "device_type": st.sampled_from(["desktop", "mobile", "watch"]),
            "referrer": st.text(max_size=3),
            "extras": st.dictionaries(st.text(max_size=2), INTEGERS | st.just([1]) | st.just({"a": {}}), max_size=2),
            "unknown": st.just([[[]]]),
        },
    ),
    st.sets(st.sampled_from(["user_id", "app_version"]), max_size=1),
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from(["reject", "keep", "drop"]),
    st.lists(EVENTS | st.just(5), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_judging_at_once_is_judging_one_by_one(unknown: Any, events: list[Any], mistaken: list[bool]) -> None:
    mistakes = [MISTAKE if wrong and number % 3 == 0 else None for number, wrong in enumerate(mistaken)][: len(events)]
    sizes = [len(orjson.dumps(event)) if orjson_takes(event) else 0 for event in events]
    wanted, text = one_by_one(
        plan(unknown),
        [Candidate(copy.deepcopy(e), m, s) for e, m, s in zip(events, mistakes, sizes, strict=True)],
    )
    wrong = mistakes if any(mistakes) else None
    whole = at_once(plan(unknown), Candidates(copy.deepcopy(events), max(sizes), wrong, sizes), CONTEXT)
    # Sizes that nobody knows are measured; those of the decoder are the same.
    measured = Candidates(copy.deepcopy(events), 0, wrong, sizes if 0 in sizes else None)
    in_slices = plan(unknown)
    sliced = joined([at_once(in_slices, part, CONTEXT) for part in measured.slices(2)])
    for found in (whole, sliced):
        assert [(item.outcome, item.reason, item.event_id, item.details) for item in found.spell_out()] == wanted
        assert b"\n".join(found.lines) == text
        assert found.n_accepted == sum(outcome is Outcome.ACCEPTED for outcome, *_ in wanted)
        assert found.n_events == len(events)


def test_events_that_were_not_stored_are_rejected_whichever_way_they_were_judged() -> None:
    plain = Result([], ["a"], lines=[b"{}"], n_accepted=1)
    mixed = written([Judged(Outcome.ACCEPTED, "", dict(EXAMPLE_EVENT), "b"), Judged(Outcome.FILTERED, "drops.no")])
    result = joined([plain, mixed])
    result.refuse_accepted("busy.full")
    assert [(item.outcome, item.reason) for item in result.judged] == [
        (Outcome.REJECTED, "busy.full"),
        (Outcome.REJECTED, "busy.full"),
        (Outcome.FILTERED, "drops.no"),
    ]
    plain.refuse_accepted("busy.full")
    assert [(item.outcome, item.reason) for item in plain.spell_out()] == [(Outcome.REJECTED, "busy.full")]


def orjson_takes(event: Any) -> bool:
    try:
        orjson.dumps(event)
    except orjson.JSONEncodeError:
        return False
    return True


def test_usual_events_need_no_object_each() -> None:
    event = {**EXAMPLE_EVENT, "event_type": "scroll"}
    result = at_once(plan("reject"), Candidates([dict(event), dict(event)], 600), CONTEXT)
    assert (result.judged, result.ids) == ([], [event["event_id"]] * 2)  # as they were sent, not as they were renamed
    assert [orjson.loads(line)["event_id"] for line in result.lines] == ["other", "other"]


@pytest.mark.parametrize(
    "extras",
    [{"a": {"b": 1}}, {"a": [1]}, {"a": float(2**63)}, {"a": -1e300}],
    ids=["object", "array", "wide", "wide and negative"],
)
def test_what_may_be_too_deep_or_too_wide_is_looked_at(extras: dict[str, Any]) -> None:
    looked = []

    def look() -> list[Detail | None]:
        looked.append(1)
        return [MISTAKE]

    candidates = Candidates([{**EXAMPLE_EVENT, "extras": extras}], 600, look_deeper=look)
    result = at_once(plan("reject"), candidates, CONTEXT)
    assert looked == [1]
    assert [(item.outcome, item.reason) for item in result.judged] == [(Outcome.INVALID, "json.limit")]


def test_event_that_cannot_be_written_is_rejected_alone(expect_log: list[str]) -> None:
    expect_log.append("an event cannot be stored")
    events = [dict(EXAMPLE_EVENT), {**EXAMPLE_EVENT, "page_name": "unwritable"}]
    result = at_once(plan("reject"), Candidates(events, 600), CONTEXT)
    assert [item.outcome for item in result.judged] == [Outcome.ACCEPTED, Outcome.REJECTED]
    assert (result.n_accepted, len(result.lines)) == (1, 1)


def test_flat_events_are_not_looked_at_again() -> None:
    def look() -> None:
        raise AssertionError("nothing to look for")

    event = {**EXAMPLE_EVENT, "extras": {"a": 1, "b": 1.5, "c": None, "d": True}}
    result = at_once(plan("reject"), Candidates([event], 600, look_deeper=look), CONTEXT)
    assert result.n_accepted == 1
