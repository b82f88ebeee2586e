"""The pipeline: the ordered enrichers and filters an event passes before it is stored.

Plain synchronous Python over one event and a small frozen context; it knows neither HTTP nor the event loop. Every
component runs in a `try` of its own: whatever it raises is counted under its id and never reaches its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import orjson

from edge.api import REMOVE, Context, Event
from edge.binding import Step
from edge.conditions import Condition
from edge.outcomes import Outcome

TIMED_EVERY = 16
"""One event in so many is timed, at most one of a request, component by component.

Reading the clock twice a step costs as much as a small step.
"""

_UNCHANGEABLE = frozenset({str, bool, int, float, type(None)})

COMPONENT_FAILED = "component"
"""The reason of events rejected because a component with `on_error: reject` failed."""


class ComponentError(Exception):
    """A component returned something it must not return."""


class PipelineObserver(Protocol):
    """What the pipeline tells about its components."""

    def component_timed(self, step: Step, duration_secs: float) -> None:
        """One call took so long (a sample of all calls)."""

    def component_failed(self, step: Step, error: BaseException) -> None:
        """A call raised, or returned what its hook does not allow."""


class Verdict(NamedTuple):
    """What the pipeline made of an event."""

    outcome: Outcome
    """ACCEPTED, FILTERED or REJECTED."""
    reason: str
    """Empty for accepted; ``<component id>.<drop reason>`` for filtered."""
    event: Event


@dataclass(slots=True)
class StepTrace:
    """What one component did to one event, for `edge explain`."""

    id: str
    type: str
    kind: str
    did: str
    """``set``, ``nothing``, ``kept``, ``dropped``, ``error``, ``not asked`` (its `when:` does not match)."""
    fields_set: dict[str, Any] = field(default_factory=dict)
    fields_removed: list[str] = field(default_factory=list)
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps an event took and where it ended."""

    steps: list[StepTrace]
    verdict: Verdict


class Pipeline:
    """Runs the bound steps in order. Built once for each (re)load; holds no state between events."""

    def __init__(self, steps: Sequence[Step], observer: PipelineObserver) -> None:
        self._steps = tuple(steps)
        # What every event asks of a step, looked up once.
        self._asked = tuple(
            (step, step.call, step.when, step.kind == "filter", step.once_per_request) for step in steps
        )
        self._observer = observer
        self._seen = 0
        """Events that were run."""

    def run(self, event: Event, context: Context) -> Verdict:
        """Return the verdict on a valid event. The event passed in is never mutated; never raises `Exception`."""
        events = [event.copy()]
        ended = self.run_all(events, context)
        return ended.get(0) or Verdict(Outcome.ACCEPTED, "", events[0])

    def run_all(self, events: list[Event], context: Context) -> dict[int, Verdict]:
        """Run the valid events of one request; return the verdicts, by index, on those that are not accepted.

        The events are changed in place. One step sees all of them before the next one sees any, which spares a third
        of the time; each event still takes the steps in their order, and each step the events in theirs. Never raises
        `Exception`.
        """
        n_events = len(events)
        timed = TIMED_EVERY - 1 - self._seen % TIMED_EVERY  # this one, if there are so many
        is_timed = timed < n_events
        self._seen += n_events
        ended: dict[int, Verdict] = {}  # tested before it is searched: it hardly ever holds anything
        for step, call, when, is_filter, once_per_request in self._asked:
            asked: Iterable[tuple[int, Event]]
            sample = timed
            if n_events > 1 and once_per_request:
                asked, sample = self._change_at_once(step, events, ended, context, is_timed), -1
            elif when is None:
                asked = enumerate(events)
            elif n_events == 1:  # half of what `_matching` takes
                asked = enumerate(events) if when(events[0]) else ()
            else:
                asked = _matching(when, events)
            for index, event in asked:
                if ended and index in ended:
                    continue
                try:
                    result = call(event, context) if index != sample else self._timed(step, event, context)
                    if result is None:
                        continue
                    if is_filter:
                        ended[index] = Verdict(Outcome.FILTERED, _counted_reason(step, result), event)
                    else:
                        _change(event, result)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    self._failed(step, error, index, event, ended)
        return ended

    def _change_at_once(
        self, step: Step, events: list[Event], ended: dict[int, Verdict], context: Context, is_timed: bool
    ) -> list[tuple[int, Event]]:
        """Ask a step about the first event it concerns and change all alike; return the events still to be asked about.

        Those are the others where the one call failed, for an error is counted for each event, and where it has set a
        value that could be changed in place, for events share none.
        """
        indexes: Sequence[int] = range(len(events))
        if ended or step.when is not None:
            asked = enumerate(events) if step.when is None else _matching(step.when, events)
            indexes = [index for index, _ in asked if index not in ended]
            if not indexes:
                return []
        first = events[indexes[0]]
        try:
            changes = self._timed(step, first, context) if is_timed else step.call(first, context)
            if _may_be_shared(changes):
                concerned = events if len(indexes) == len(events) else [events[index] for index in indexes]
                for name, value in changes.items() if changes else ():
                    for event in concerned:
                        event[name] = value  # half of what one `update` for all fields takes
                return []
            _change(first, changes)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._failed(step, error, indexes[0], first, ended)
        return [(index, events[index]) for index in indexes[1:]]

    def _failed(self, step: Step, error: BaseException, index: int, event: Event, ended: dict[int, Verdict]) -> None:
        # `CancelledError` is an error as well: nothing here waits, so it is that of something the plugin has cancelled.
        self._observer.component_failed(step, error)
        if step.on_error == "reject":
            ended[index] = Verdict(Outcome.REJECTED, COMPONENT_FAILED, event)

    def explain(self, event: Event, context: Context) -> Explanation:
        """Run the same steps one by one and write down what each did; counts nothing."""
        traces: list[StepTrace] = []
        verdict = Verdict(Outcome.ACCEPTED, "", event)
        for step in self._steps:
            errors = ErrorCollector()
            before = verdict.event
            verdict = Pipeline([step], errors).run(before, context)
            traces.append(_trace(step, before, verdict, errors.last))
            if verdict.outcome is not Outcome.ACCEPTED:
                break
        return Explanation(traces, verdict)

    def _timed(self, step: Step, event: Event, context: Context) -> Any:
        started = perf_counter()
        try:
            return step.call(event, context)
        finally:
            self._observer.component_timed(step, perf_counter() - started)


def _matching(when: Condition, events: Sequence[Event]) -> Iterator[tuple[int, Event]]:
    """Return the events that match a condition, which never raises, with their indexes."""
    answers = list(map(when, events))
    return compress(enumerate(events), answers) if any(answers) else iter(())


def _may_be_shared(changes: object) -> bool:
    """Say whether these changes are none, or set fields to values that nobody can change in place.

    Raises for what cannot be stored.
    """
    if changes is None:
        return True
    if type(changes) is not dict or any(type(value) not in _UNCHANGEABLE for value in changes.values()):
        return False
    orjson.dumps(changes)
    return True


def _counted_reason(step: Step, result: Any) -> str:
    """Return the drop reason as counted; a reason that was not declared would be an unbounded metric label."""
    reason = step.reasons.get(result) if isinstance(result, str) else None
    if reason is None:
        raise ComponentError("returned a drop reason that the component does not declare in `reasons`")
    return reason


def _change(event: Event, changes: Mapping[str, Any]) -> None:
    """Make the changes. All or nothing: raises before anything is changed."""
    if type(changes) is not dict:
        if not isinstance(changes, Mapping):
            raise ComponentError(f"returned a {type(changes).__name__} instead of a mapping of fields or None")
        changes = dict(changes)
    for name, value in changes.items():
        # Texts of ASCII, which is nearly all that enrichers set, can surely be stored.
        if type(value) is not str or type(name) is not str or not (value.isascii() and name.isascii()):
            _change_with_care(event, changes)
            return
    event |= changes


def _change_with_care(event: Event, changes: Mapping[str, Any]) -> None:
    """Do what `_change` does with any values."""
    kept = {name: value for name, value in changes.items() if value is not REMOVE}
    # Whatever cannot be stored is this component's mistake; later nobody could tell whose it was.
    orjson.dumps(kept)
    for name in changes:
        if name not in kept:
            event.pop(name, None)
    event.update(kept)


class ErrorCollector:
    """Keeps the error of the one step that `Pipeline.explain` runs at a time."""

    def __init__(self) -> None:
        self.last: BaseException | None = None

    def component_timed(self, step: Step, duration_secs: float) -> None:
        """Durations are not explained."""

    def component_failed(self, step: Step, error: BaseException) -> None:
        """Keep the error."""
        self.last = error


def _trace(step: Step, before: Event, verdict: Verdict, error: BaseException | None) -> StepTrace:
    """Return what one step did, seen from outside: the event before it, and the verdict and the event after it."""
    trace = StepTrace(step.id, step.type, step.kind, "kept" if step.kind == "filter" else "nothing")
    after = verdict.event
    if error is not None:
        trace.did, trace.error = "error", f"{type(error).__name__}: {error}"
    elif verdict.outcome is Outcome.FILTERED:
        trace.did, trace.reason = "dropped", verdict.reason
    elif step.when is not None and not step.when(before):
        trace.did = "not asked"
    elif after.keys() != before.keys() or any(before[name] is not value for name, value in after.items()):
        trace.did = "set"
        trace.fields_set = {
            name: value for name, value in after.items() if name not in before or before[name] is not value
        }
        trace.fields_removed = [name for name in before if name not in after]
    return trace
