"""What both ingest routes do with a request, whichever HTTP server has read it: key, limits, body, door, answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, Protocol

from edge.api import Context
from edge.door import Judged, Result
from edge.http import answers, bodies
from edge.http.answers import Answer
from edge.http.auth import AuthError, Identity
from edge.http.bodies import BodyError
from edge.http.decode import Decoded, decode_batch, decode_event
from edge.http.large import LARGE_BYTES, NoTurnError
from edge.http.state import HttpPlan, Site
from edge.outcomes import Outcome

Route = Literal["ingest", "batch"]


class Headers(Protocol):
    """Headers of a request; names are found in any case."""

    def get(self, name: str, default: str = "", /) -> str:
        """Return a header's value, several joined with a comma."""

    def get_list(self, name: str, /) -> list[str]:
        """Return the values of every header of this name."""

    def __contains__(self, name: object, /) -> bool: ...

    def __getitem__(self, name: str, /) -> str: ...


class Head(Protocol):
    """What is known of a request before its body: the part of it that the routes look at."""

    received_at: datetime
    """UTC."""
    request_id: str
    traceparent: str

    @property
    def headers(self) -> Any:
        """Its `Headers`."""

    @property
    def peer(self) -> str:
        """Address of the other end of the connection; empty on a unix socket."""

    def query_value(self, name: str) -> str | None:
        """Return the last value of a query parameter."""


class Intake:
    """One request to an ingest route, from its head to its answer. `release` is called when it is over, in any way.

    The plan of the moment it began holds for the whole request.
    """

    def __init__(self, site: Site, route: Route, head: Head) -> None:
        self.site = site
        self.plan: HttpPlan = site.plan
        self.route = route
        self._head = head
        self._identity: Identity
        self._media_type = "json"
        self._codings: tuple[str, ...] = ()
        self._chunks: list[bytes] = []
        self.held_bytes = 0

    def refusal_by_head(self) -> Answer | None:
        """Refuse by the headers and the URL alone: drain, key, media type, size. None: the body may come."""
        if self.site.closing:
            return answers.busy("busy.draining")
        headers = self._head.headers
        query_key = self._head.query_value("api_key")
        try:
            self._identity = self.plan.authenticator.identify(headers, query_key, headers.get("Origin"), self.route)
            self._media_type = bodies.media_type(headers.get("Content-Type"))
            self._codings = bodies.content_codings(headers.get("Content-Encoding"))
        except AuthError as error:
            answer = answers.refuse(error.code, error.field, error.message)
            if error.status == 401:
                answer.headers["WWW-Authenticate"] = 'Basic realm="events", Bearer'
            return answer
        except BodyError as error:
            return answers.refuse(error.code, error.field, error.message)
        declared_bytes = int(headers.get("Content-Length", "0"))
        if declared_bytes > self.plan.limits.body_bytes:
            return self._too_large()
        if self.site.body_bytes + declared_bytes > self.plan.limits.inflight_bytes:
            return answers.busy("busy.backpressure")
        return None

    def refusal_of_chunk(self, chunk: bytes) -> Answer | None:
        """Hold a piece of the body; the refusal when it is too much for this request or for all requests together."""
        if self.held_bytes + len(chunk) > self.plan.limits.body_bytes:
            return self._too_large()
        if not self._hold(len(chunk)):
            return answers.busy("busy.backpressure")
        self._chunks.append(chunk)
        return None

    def _too_large(self) -> Answer:
        return answers.refuse("limit.body", "body", f"must be at most {self.plan.limits.body_bytes} bytes")

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

    def reserve(self, n_bytes: int) -> bool:
        """Charge a body before it is there; False when all requests together would hold too much."""
        return self._hold(n_bytes)

    def hold_whole(self, body: bytes) -> None:
        """Take a body that was reserved."""
        self._chunks.append(body)

    def respond_now(self, body: bytes, done: Callable[[Answer], None]) -> bool:
        """Do what `respond` does with a small, plain body, without a task; False when the body is not of that kind.

        `done` has the answer, now or once the events are stored.
        """
        if self._codings or bodies.sniff_codings(body) or not self.site.gateway.door.waits_for_nobody:
            return False
        context = self._context()
        try:
            decoded = self._decode(body)
        except BodyError as error:
            self.site.gateway.door.invalid(context, error.code)
            done(answers.refuse(error.code, error.field, error.message))
            return True
        refusal = self._refusal_of_events(decoded, context)
        if refusal is not None:
            done(refusal)
            return True
        self.site.gateway.door.take_now(
            decoded.candidates, context, decoded.sent_at, lambda result: done(self._answer_for(result))
        )
        return True

    async def respond(self) -> Answer:
        """Decode the body, which has arrived, and hand its events to the door."""
        context = self._context()
        try:
            return await self._take_body(context)
        except BodyError as error:
            self.site.gateway.door.invalid(context, error.code)
            return answers.refuse(error.code, error.field, error.message)
        except NoTurnError:
            return answers.busy("busy.backpressure")
        finally:
            self.release()

    async def _take_body(self, context: Context) -> Answer:
        """Take a small body at once, a large one when it has its turn: until its events are stored, for they are it."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        limits = self.plan.limits
        codings = self._codings or bodies.sniff_codings(data)
        raw: bytes | None = data
        for coding in codings:
            small = partial(bodies.decompress_small, coding, data, min(LARGE_BYTES, limits.decompressed_bytes))
            raw = await self.site.large.run(small) if coding in bodies.SLOW_TO_START else small()
        if raw is not None and len(raw) <= LARGE_BYTES:
            return await self._take(self._decode(raw), context)
        if (refusal := self._without_quota(context)) is not None:
            return refusal
        large = self.site.large
        async with large.turn():
            if raw is None:
                raw = await large.run(
                    bodies.decompress, codings[0], data, limits.decompressed_bytes, limits.decompressed_ratio
                )
                if not self._hold(len(raw) - self.held_bytes):
                    return answers.busy("busy.backpressure")
            del data
            decoded = await large.run(self._decode, raw)
            del raw
            return await self._take(decoded, context)

    def _decode(self, raw: bytes) -> Decoded:
        """Return the events of the body; blocking."""
        if self.route == "batch":
            return decode_batch(raw, self._media_type, self.plan.limits)
        candidate = decode_event(raw, self.plan.limits)
        return Decoded([candidate]) if candidate.mistake is None else Decoded([], details=[candidate.mistake])

    async def _take(self, decoded: Decoded, context: Context) -> Answer:
        """Judge and store the events of the body."""
        refusal = self._refusal_of_events(decoded, context)
        if refusal is not None:
            return refusal
        return self._answer_for(await self.site.gateway.door.take(decoded.candidates, context, decoded.sent_at))

    def _refusal_of_events(self, decoded: Decoded, context: Context) -> Answer | None:
        """Refuse a body that is no events at all, or too many for its key; the books have them then."""
        if decoded.details:
            # The books count it as one invalid event.
            self.site.gateway.door.invalid(context, decoded.details[0]["code"])
            return answers.refuse_with(decoded.details)
        wait_secs = self.plan.rate_limiter.take(context.key_id, len(decoded.candidates))
        if wait_secs <= 0:
            return None
        self.site.gateway.door.refuse(len(decoded.candidates), context, "limit.rate")
        return _quota_used_up(wait_secs)

    def _answer_for(self, result: Result) -> Answer:
        if self.route == "ingest":
            return _single_answer(result)
        return _batch_answer(result, verbose=self._head.query_value("verbose") in ("1", "true"))

    def _context(self) -> Context:
        head, headers = self._head, self._head.headers
        wanted = {name: headers[name] for name in self.site.gateway.wanted_headers if name in headers}
        return Context(
            received_at=head.received_at,
            remote_ip=self.plan.proxies.client_ip(head.peer, headers.get_list("X-Forwarded-For")),
            key_id=self._identity.id,
            headers=wanted,
            request_id=head.request_id,
            traceparent=head.traceparent,
        )

    def _without_quota(self, context: Context) -> Answer | None:
        """Return the 429 when the key may not send a single event now; nobody knows yet how many there are."""
        wait_secs = self.plan.rate_limiter.wait_secs(context.key_id)
        return _quota_used_up(wait_secs) if wait_secs > 0 else None


def _quota_used_up(wait_secs: float) -> Answer:
    return answers.refuse("limit.rate", "key", "has used up its quota", retry_after_secs=wait_secs)


def _single_answer(result: Result) -> Answer:
    judged = result.judged[0]
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
    n_invalid = result.counts[Outcome.INVALID]
    n_rejected = result.counts[Outcome.REJECTED]
    n_taken = len(result.judged) - n_invalid - n_rejected
    if result.busy or (n_rejected and not n_taken):
        # The invalid ones will be told so when the rest is sent again; a 400 now would make the sender drop them all.
        return answers.busy(result.busy or "busy.backpressure")
    rows = _batch_rows(result.judged, verbose=verbose)
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
