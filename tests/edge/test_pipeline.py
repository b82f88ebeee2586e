from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.api import REMOVE, Context
from edge.binding import Step
from edge.outcomes import Outcome
from edge.pipeline import TIMED_EVERY, Pipeline

CONTEXT = Context(datetime(2026, 1, 2, tzinfo=UTC), "192.0.2.7", "web", {})


class Recorder:
    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []
        self.timed: list[str] = []

    def component_timed(self, step: Step, duration_secs: float) -> None:
        assert duration_secs >= 0
        self.timed.append(step.id)

    def component_failed(self, step: Step, error: BaseException) -> None:
        self.failed.append((step.id, type(error).__name__))


def enricher(id: str, call: Any, **options: Any) -> Step:
    return Step(
        **{
            "id": id,
            "type": id,
            "kind": "enricher",
            "call": call,
            "when": None,
            "on_error": "skip",
            "reasons": {},
            **options,
        }
    )


def filtering(id: str, call: Any, *reasons: str, **options: Any) -> Step:
    return enricher(id, call, kind="filter", reasons={reason: f"{id}.{reason}" for reason in reasons}, **options)


def boom(event: Any, context: Any) -> Any:
    raise ValueError("boom")


def test_pipeline_applies_steps_in_order() -> None:
    steps = [
        enricher("one", lambda e, c: {"a": 1}),
        enricher("two", lambda e, c: {"b": e["a"] + 1, "x": REMOVE}),
    ]
    event = {"x": 0}
    verdict = Pipeline(steps, Recorder()).run(event, CONTEXT)
    assert verdict == (Outcome.ACCEPTED, "", {"a": 1, "b": 2})
    assert event == {"x": 0}


def test_filter_drops_with_a_reason_that_names_the_component_and_stops_the_pipeline() -> None:
    recorder = Recorder()
    steps = [filtering("hot", lambda e, c: "too_hot", "too_hot"), enricher("late", boom)]
    assert Pipeline(steps, recorder).run({}, CONTEXT)[:2] == (Outcome.FILTERED, "hot.too_hot")
    assert recorder.failed == []


def test_failing_enricher_leaves_the_event_as_it_was_and_the_next_one_runs() -> None:
    recorder = Recorder()
    steps = [enricher("bad", boom), enricher("good", lambda e, c: {"a": 1})]
    assert Pipeline(steps, recorder).run({"x": 0}, CONTEXT).event == {"x": 0, "a": 1}
    assert recorder.failed == [("bad", "ValueError")]


def test_failing_component_with_on_error_reject_rejects_the_event() -> None:
    recorder = Recorder()
    verdict = Pipeline([enricher("bad", boom, on_error="reject")], recorder).run({}, CONTEXT)
    assert verdict.outcome is Outcome.REJECTED


def cancelled(event: Any, context: Any) -> Any:
    raise asyncio.CancelledError


def test_component_that_looks_at_a_cancelled_task_of_its_own_fails_as_any_other() -> None:
    recorder = Recorder()
    steps = [enricher("bad", cancelled), enricher("good", lambda e, c: {"a": 1})]
    assert Pipeline(steps, recorder).run({}, CONTEXT) == (Outcome.ACCEPTED, "", {"a": 1})
    assert recorder.failed == [("bad", "CancelledError")]


def exits(event: Any, context: Any) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "call",
    [
        exits,
        lambda e, c: "not a mapping",
        lambda e, c: {"a": object()},
        lambda e, c: {"a": 2**70},
        lambda e, c: {"a": "\ud800"},
        lambda e, c: {1: "a"},
    ],
    ids=["SystemExit", "string", "object", "wide integer", "lone surrogate", "integer key"],
)
def test_enricher_that_returns_what_cannot_be_stored_is_skipped_and_counted(call: Any) -> None:
    recorder = Recorder()
    verdict = Pipeline([enricher("bad", call)], recorder).run({"x": 0}, CONTEXT)
    assert verdict == (Outcome.ACCEPTED, "", {"x": 0})
    assert [name for name, _ in recorder.failed] == ["bad"]


def test_filter_that_returns_an_undeclared_reason_keeps_the_event_and_is_counted() -> None:
    recorder = Recorder()
    verdict = Pipeline([filtering("odd", lambda e, c: e["user_id"], "declared")], recorder).run(
        {"user_id": "u"}, CONTEXT
    )
    assert verdict.outcome is Outcome.ACCEPTED
    assert recorder.failed == [("odd", "ComponentError")]


def test_step_whose_when_does_not_match_is_not_asked() -> None:
    steps = [filtering("f", lambda e, c: "x", "x", when=lambda e: e["n"] > 1)]
    pipeline = Pipeline(steps, Recorder())
    assert pipeline.run({"n": 1}, CONTEXT).outcome is Outcome.ACCEPTED
    assert pipeline.run({"n": 2}, CONTEXT).outcome is Outcome.FILTERED


def test_step_that_goes_by_the_request_is_asked_once_and_each_event_gets_its_fields() -> None:
    calls = []

    def stamp(event: Any, context: Any) -> Any:
        calls.append(context)
        return {"at": "noon", "n": 1, "exact": None}

    steps = [
        filtering("odd", lambda e, c: "odd", "odd", when=lambda e: e["n"] % 2 == 1),
        enricher("stamp", stamp, when=lambda e: e["n"] < 8, once_per_request=True),
        enricher("after", lambda e, c: {"seen": e.get("at")}),
    ]
    events = [{"n": number} for number in range(10)]
    ended = Pipeline(steps, Recorder()).run_all(events, CONTEXT)
    assert len(calls) == 1
    assert sorted(ended) == [1, 3, 5, 7, 9]
    stamped = {"at": "noon", "n": 1, "exact": None, "seen": "noon"}
    assert [events[index] for index in (0, 2, 4, 6)] == [stamped] * 4
    assert events[8] == {"n": 8, "seen": None}
    assert events[1] == {"n": 1}


def test_step_that_goes_by_the_request_is_not_asked_when_no_event_concerns_it() -> None:
    recorder = Recorder()
    steps = [enricher("bad", boom, when=lambda e: False, once_per_request=True)]
    assert Pipeline(steps, recorder).run_all([{}, {}], CONTEXT) == {}
    assert recorder.failed == []


@pytest.mark.parametrize(
    "call", [boom, exits, cancelled, lambda e, c: {"a": object()}, lambda e, c: "text", lambda e, c: {"a": "\ud800"}]
)
@pytest.mark.parametrize("on_error", ["skip", "reject"])
def test_error_of_a_step_that_goes_by_the_request_is_counted_for_each_event(call: Any, on_error: str) -> None:
    recorder = Recorder()
    events: list[Any] = [{"x": 0}, {"x": 1}, {"x": 2}]
    steps = [enricher("bad", call, once_per_request=True, on_error=on_error)]
    ended = Pipeline(steps, recorder).run_all(events, CONTEXT)
    assert [name for name, _ in recorder.failed] == ["bad"] * 3
    assert len(ended) == (3 if on_error == "reject" else 0)
    assert events == [{"x": 0}, {"x": 1}, {"x": 2}]


@pytest.mark.parametrize("on_error", ["skip", "reject"])
def test_error_of_the_one_call_for_all_events_is_that_of_the_first_which_it_concerns(on_error: str) -> None:
    calls: list[str] = []

    def fails_once(event: Any, context: Any) -> dict[str, Any]:
        calls.append(event["x"])
        if len(calls) == 1:
            raise RuntimeError("not yet")
        return {"at": len(calls)}

    recorder = Recorder()
    events: list[Any] = [{"x": "other"}, {"x": "a"}, {"x": "b"}, {"x": "c"}]
    step = enricher("late", fails_once, when=lambda e: e["x"] != "other", once_per_request=True, on_error=on_error)
    ended = Pipeline([step], recorder).run_all(events, CONTEXT)
    assert calls == ["a", "b", "c"]
    assert [name for name, _ in recorder.failed] == ["late"]
    assert list(ended) == ([1] if on_error == "reject" else [])
    assert events == [{"x": "other"}, {"x": "a"}, {"x": "b", "at": 2}, {"x": "c", "at": 3}]


def test_events_are_asked_for_once_and_timed_once_by_a_step_that_goes_by_the_request() -> None:
    matched: list[Any] = []
    recorder = Recorder()
    step = enricher("tags", lambda e, c: {"tags": []}, when=lambda e: matched.append(e) or True, once_per_request=True)
    Pipeline([step], recorder).run_all([{} for _ in range(TIMED_EVERY)], CONTEXT)
    assert len(matched) == TIMED_EVERY
    assert recorder.timed == ["tags"]


def test_events_share_no_value_that_could_be_changed_in_place() -> None:
    steps = [enricher("tags", lambda e, c: {"tags": [], "plain": "a", "x": REMOVE}, once_per_request=True)]
    events: list[Any] = [{"x": 0}, {"x": 1}]
    Pipeline(steps, Recorder()).run_all(events, CONTEXT)
    assert events == [{"tags": [], "plain": "a"}] * 2
    assert events[0]["tags"] is not events[1]["tags"]


def test_pipeline_times_a_sample_of_steps_that_go_by_the_request() -> None:
    recorder = Recorder()
    pipeline = Pipeline([enricher("a", lambda e, c: {"b": 1}, once_per_request=True)], recorder)
    for _ in range(3):
        pipeline.run_all([{} for _ in range(TIMED_EVERY)], CONTEXT)
    assert recorder.timed == ["a"] * 3


def test_pipeline_times_a_sample_of_runs() -> None:
    recorder = Recorder()
    pipeline = Pipeline([enricher("a", lambda e, c: None)], recorder)
    for _ in range(TIMED_EVERY * 3):
        pipeline.run({}, CONTEXT)
    assert recorder.timed == ["a"] * 3


def test_explain_says_what_each_component_did() -> None:
    steps = [
        enricher("sets", lambda e, c: {"a": 1, "b": REMOVE}),
        enricher("idle", lambda e, c: None),
        enricher("elsewhere", boom, when=lambda e: False),
        enricher("fails", boom),
        filtering("keeps", lambda e, c: None, "r"),
        filtering("drops", lambda e, c: "r", "r"),
        enricher("never", boom),
    ]
    recorder = Recorder()
    explanation = Pipeline(steps, recorder).explain({"b": 2}, CONTEXT)
    assert [(trace.id, trace.did) for trace in explanation.steps] == [
        ("sets", "set"),
        ("idle", "nothing"),
        ("elsewhere", "not asked"),
        ("fails", "error"),
        ("keeps", "kept"),
        ("drops", "dropped"),
    ]
    assert explanation.steps[0].fields_set == {"a": 1}
    assert explanation.steps[0].fields_removed == ["b"]
    assert explanation.verdict == (Outcome.FILTERED, "drops.r", {"a": 1})
    assert recorder.failed == []


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.floats()))
def test_pipeline_never_mutates_the_event_it_is_given(event: dict[str, Any]) -> None:
    before = dict(event)
    Pipeline([enricher("a", lambda e, c: {"added": 1, **dict.fromkeys(e, REMOVE)})], Recorder()).run(event, CONTEXT)
    assert event == before
