"""What both ingest routes do with a body, whichever HTTP server has read it: decode, door, answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from edge.api import Context
from edge.http import admission, answers, bodies
from edge.http.admission import Admission, Route, admit, refusal_by_state
from edge.http.answers import Answer
from edge.http.bodies import BodyError
from edge.http.decode import NoEventsError, decode_batch, decode_single
from edge.http.large import LARGE_BYTES, NoTurnError
from edge.http.state import HttpPlan, Site
from edge.judging import Candidates, Judged, Result
from edge.outcomes import Outcome
from edge.validation import Detail


class Request(admission.Head, Protocol):
    """A request to an ingest route, as its handler knows it."""

    received_at: datetime
    """UTC."""
    request_id: str


class Intake:
    """One request to an ingest route, from its head to its answer. `release` is called when it is over, in any way.

    The plan of the moment it began holds for the whole request.
    """

    def __init__(self, site: Site, route: Route) -> None:
        self.site = site
        self.plan: HttpPlan = site.plan
        self.route = route
        self._admission: Admission
        self._context: Context
        self._chunks: list[bytes] = []
        self.held_bytes = 0

    def refusal_by_head(self, request: Request) -> Answer | None:
        """Refuse by the headers and the URL alone: drain, key, media type, size. None: the body may come.

        The request is not kept: it is the handler, which has this, and the two would be left to the garbage collector.
        """
        if self.site.closing:
            return answers.busy("busy.draining")
        admitted = admit(self.site, self.plan, self.route, request)
        if isinstance(admitted, Answer):
            return admitted
        self._admission = admitted
        self._context = admitted.context(request.received_at, request.request_id)
        declared_bytes = int(request.headers.get("Content-Length", "0"))
        return refusal_by_state(self.site, self.plan, declared_bytes)

    def refusal_of_chunk(self, chunk: bytes) -> Answer | None:
        """Hold a piece of the body; the refusal when it is too much for this request or for all requests together."""
        if self.held_bytes + len(chunk) > self.plan.limits.body_bytes:
            return admission.body_too_large(self.plan)
        if not self._hold(len(chunk)):
            return answers.busy("busy.backpressure")
        self._chunks.append(chunk)
        return None

    def _hold(self, n_bytes: int) -> bool:
        """Charge so many bytes to this request; False when all requests together would hold too much."""
        if self.site.body_bytes + n_bytes > self.plan.limits.inflight_bytes:
            return False
        self.site.body_bytes += n_bytes
        self.held_bytes += n_bytes
        return True

    def release(self) -> None:
        """Give the memory of the body back."""
        self._chunks.clear()
        self.site.body_bytes -= self.held_bytes
        self.held_bytes = 0

    async def respond(self) -> Answer:
        """Decode the body, which has arrived, and hand its events to the door."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        try:
            return await respond(self.site, self._admission, self._context, data, self._hold_whole)
        finally:
            self.release()

    def _hold_whole(self, n_bytes: int) -> bool:
        return self._hold(n_bytes - self.held_bytes)


async def respond(
    site: Site, admission: Admission, context: Context, data: bytes, hold: Callable[[int], bool]
) -> Answer:
    """Answer a request, its body being there. `hold` charges it for the whole of a body that was decompressed."""
    try:
        return await _take_body(site, admission, context, data, hold)
    except (BodyError, NoEventsError) as error:
        return _unreadable(site, context, error.details)
    except NoTurnError:
        return answers.busy("busy.backpressure")


async def _take_body(
    site: Site, admission: Admission, context: Context, data: bytes, hold: Callable[[int], bool]
) -> Answer:
    """Take a small body at once, a large one when it has its turn: until its events are stored, for they are it."""
    limits = admission.plan.limits
    codings = admission.codings or bodies.sniff_codings(data)
    raw: bytes | None = data
    for coding in codings:
        small = partial(bodies.decompress_small, coding, data, min(LARGE_BYTES, limits.decompressed_bytes))
        raw = await site.large.run(small) if coding in bodies.SLOW_TO_START else small()
    if raw is not None and len(raw) <= LARGE_BYTES:
        return await _take(site, admission, context, decode(admission, raw))
    if (refusal := _without_quota(admission.plan, context)) is not None:
        return refusal
    large = site.large
    async with large.turn():
        if raw is None:
            raw = await large.run(
                bodies.decompress, codings[0], data, limits.decompressed_bytes, limits.decompressed_ratio
            )
            if not hold(len(raw)):
                return answers.busy("busy.backpressure")
        del data
        candidates = await large.run(decode, admission, raw)
        del raw
        return await _take(site, admission, context, candidates)


async def _take(site: Site, admission: Admission, context: Context, candidates: Candidates) -> Answer:
    """Judge and store the events of the body."""
    refusal = refusal_by_quota(site, admission.plan, context, len(candidates))
    if refusal is not None:
        return refusal
    result = await site.gateway.door.take(candidates, context)
    return answer_for(admission, result)


def respond_now(
    site: Site, admission: Admission, context: Context, body: bytes, done: Callable[[Result | Answer], None]
) -> bool:
    """Do what `respond` does with a small, plain body, without a task; False when the body is not of that kind.

    `done` has the result of the door, or a refusal, now or once the events are stored.
    """
    door = site.gateway.door
    if admission.codings or bodies.sniff_codings(body) or not door.waits_for_nobody:
        return False
    try:
        candidates = decode(admission, body)
    except (BodyError, NoEventsError) as error:
        done(_unreadable(site, context, error.details))
        return True
    refusal = refusal_by_quota(site, admission.plan, context, len(candidates))
    if refusal is not None:
        done(refusal)
    else:
        door.take_now(candidates, context, done)
    return True


def decode(admission: Admission, raw: bytes) -> Candidates:
    """Return the events of a body; blocking."""
    limits = admission.plan.limits
    if admission.route == "batch":
        return decode_batch(raw, admission.media_type, limits)
    return decode_single(raw, limits)


def _unreadable(site: Site, context: Context, details: Sequence[Detail]) -> Answer:
    """Answer a body that is no events at all; the books count it as one invalid event."""
    site.gateway.door.invalid(context, details[0]["code"])
    return answers.refuse_with(details)


def refusal_by_quota(site: Site, plan: HttpPlan, context: Context, n_events: int) -> Answer | None:
    """Refuse events that are too many for their key; the books have them then."""
    wait_secs = plan.rate_limiter.take(context.key_id, n_events)
    if wait_secs <= 0:
        return None
    site.gateway.door.refuse(n_events, context, "limit.rate")
    return _quota_used_up(wait_secs)


def _without_quota(plan: HttpPlan, context: Context) -> Answer | None:
    """Return the 429 when the key may not send a single event now; nobody knows yet how many there are."""
    wait_secs = plan.rate_limiter.wait_secs(context.key_id)
    return _quota_used_up(wait_secs) if wait_secs > 0 else None


def _quota_used_up(wait_secs: float) -> Answer:
    return answers.refuse("limit.rate", "key", "has used up its quota", retry_after_secs=wait_secs)


def answer_for(admission: Admission, result: Result) -> Answer:
    """Return the answer to what became of a request's events."""
    if admission.route == "ingest":
        return _single_answer(result)
    return _batch_answer(result, verbose=admission.verbose)


def _single_answer(result: Result) -> Answer:
    judged = result.spell_out()[0]
    if judged.outcome is Outcome.INVALID:
        return answers.refuse_with(judged.details)
    if judged.outcome is Outcome.REJECTED:
        return answers.busy(result.busy or "busy.backpressure")
    body: dict[str, Any] = {"status": "success", "eventId": judged.event_id}
    if judged.outcome is Outcome.DUPLICATE:
        body["duplicate"] = True
    return Answer(200, body)


def _batch_answer(result: Result, *, verbose: bool) -> Answer:
    """Return the answer to a batch: 200 when anything was taken, 503 when it all comes back later, else 400."""
    outcomes = Counter([item.outcome for item in result.judged])
    n_invalid, n_rejected = outcomes[Outcome.INVALID], outcomes[Outcome.REJECTED]
    n_taken = result.n_events - n_invalid - n_rejected
    if result.busy or (n_rejected and not n_taken):
        # The invalid ones will be told so when the rest is sent again; a 400 now would make the sender drop them all.
        return answers.busy(result.busy or "busy.backpressure")
    rows = _batch_rows(result.spell_out(), verbose=verbose) if verbose or result.judged else []
    status = "error" if not n_taken else "partial" if n_invalid or n_rejected else "success"
    body: dict[str, Any] = {"status": status, "accepted": n_taken, "rejected": n_invalid + n_rejected, "results": rows}
    if n_taken:
        return Answer(200, body)
    details = [{**detail, "field": f"events[0].{detail['field']}"} for detail in result.judged[0].details]
    return Answer(400, {"error": answers.INVALID_EVENT.error, "details": details, **body})


def _batch_rows(judged: Sequence[Judged], *, verbose: bool) -> list[dict[str, Any]]:
    """Return the rows of `results`: what was not plainly accepted, or everything."""
    rows: list[dict[str, Any]] = []
    for index, item in enumerate(judged):
        plain = item.outcome in (Outcome.ACCEPTED, Outcome.FILTERED)
        if plain and not verbose:
            continue
        # Policy is not the sender's business: a filtered event looks accepted.
        status = "accepted" if plain else str(item.outcome)
        row: dict[str, Any] = {"index": index, "eventId": item.event_id, "status": status}
        if item.outcome in (Outcome.INVALID, Outcome.REJECTED):
            row["retryable"] = item.outcome is Outcome.REJECTED
            row["details"] = item.details
        rows.append(row)
    return rows
