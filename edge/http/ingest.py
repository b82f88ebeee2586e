"""`POST /ingest` and `POST /ingest/batch`: from a request to the answers of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

from edge.api import Context
from edge.door import Judged, Result
from edge.http import answers, bodies
from edge.http.answers import Answer
from edge.http.auth import AuthError, Identity
from edge.http.bodies import BodyError
from edge.http.decode import decode_batch, decode_event
from edge.http.handlers import EdgeHandler
from edge.http.state import HttpPlan, Site
from edge.outcomes import Outcome
from edge.validation import Detail

P = ParamSpec("P")
T = TypeVar("T")

THREAD_BYTES = 64 * 1024
"""Bodies from this size on are decompressed and decoded in a thread, so that other senders do not wait for it."""


class IngestHandler(EdgeHandler):
    """What both ingest routes do: authenticate, read the body under its caps, hand the events to the door."""

    methods = ("POST",)
    scope: ClassVar[Literal["ingest", "batch"]] = "ingest"

    def initialize(self, site: Site) -> None:
        """Take what the routes share and begin with an empty body."""
        super().initialize(site)
        self.plan: HttpPlan = self.site.plan
        self._identity: Identity
        self._media_type = "json"
        self._codings: tuple[str, ...] = ()
        self._chunks: list[bytes] = []
        self._size_bytes = 0

    def admit(self) -> Answer | None:
        """Decide by the headers alone: drain, key, media type, size."""
        if self.site.closing:
            return answers.busy("busy.draining")
        headers = self.request.headers
        query_key = self._query_key()
        try:
            self._identity = self.plan.authenticator.identify(headers, query_key, headers.get("Origin"), self.scope)
            self._media_type = bodies.media_type(headers.get("Content-Type"))
            self._codings = bodies.content_codings(headers.get("Content-Encoding"))
        except AuthError as error:
            answer = answers.refuse(error.code, error.field, error.message)
            if error.status == 401:
                answer.headers["WWW-Authenticate"] = 'Basic realm="events", Bearer'
            return answer
        except BodyError as error:
            return answers.refuse(error.code, error.field, error.message)
        length = headers.get("Content-Length", "")
        if length.isascii() and length.isdigit():
            # Twenty digits are more than any limit, and more than int() should be asked to read.
            declared = int(length[:20])
            if declared > self.plan.limits.body_bytes:
                return self._too_large()
            if self.site.body_bytes + declared > self.plan.limits.inflight_bytes:
                return answers.busy("busy.backpressure")
        self.start_body_clock()
        return None

    def _query_key(self) -> str | None:
        if "api_key=" not in self.request.query:
            return None
        values = self.get_query_arguments("api_key")
        return values[-1] if values else None

    def take_chunk(self, chunk: bytes) -> Awaitable[None] | None:
        """Hold a piece of the body, unless it is too much for this request or for all requests together."""
        self._size_bytes += len(chunk)
        if self._size_bytes > self.plan.limits.body_bytes:
            return self._refuse_midway(self._too_large())
        if self.site.body_bytes + len(chunk) > self.plan.limits.inflight_bytes:
            return self._refuse_midway(answers.busy("busy.backpressure"))
        self.site.body_bytes += len(chunk)
        self._chunks.append(chunk)
        if self.body_clock is not None:
            self.body_clock.received_bytes = self._size_bytes
        return None

    async def _refuse_midway(self, answer: Answer) -> None:
        """Answer while the body still arrives; from here on it is thrown away."""
        self._release()
        self.body_clock = None
        await self.answer_early(answer)

    def _too_large(self) -> Answer:
        return answers.refuse("limit.body", "body", f"must be at most {self.plan.limits.body_bytes} bytes")

    async def respond(self) -> Answer:
        """Decode the body and hand its events to the door."""
        self.body_clock = None
        self.site.gateway.metrics.http_request_bytes.inc(self._size_bytes)
        context = self._context(self._identity)
        try:
            raw = await self._body()
            return await self.take(raw, context)
        except BodyError as error:
            self._count_unreadable(context, error)
            return answers.refuse(error.code, error.field, error.message)
        finally:
            self._release()

    async def take(self, raw: bytes, context: Context) -> Answer:
        """Answer for a whole body. The two routes differ here."""
        raise NotImplementedError

    async def _body(self) -> bytes:
        """Return the body, decompressed."""
        data = b"".join(self._chunks)
        limits = self.plan.limits
        for coding in self._codings or bodies.sniff_codings(data):
            async with self.site.decompressions:
                data = await _off_loop(
                    len(data), bodies.decompress, coding, data, limits.decompressed_bytes, limits.decompressed_ratio
                )
        return data

    def _context(self, identity: Identity) -> Context:
        headers = self.request.headers
        wanted = {name: headers[name] for name in self.site.gateway.wanted_headers if name in headers}
        peer = self.request.remote_ip or ""
        if peer == "0.0.0.0":  # noqa: S104 - what Tornado calls the peer on a unix socket
            peer = ""
        return Context(
            received_at=self.received_at,
            remote_ip=self.plan.proxies.client_ip(peer, headers.get_list("X-Forwarded-For")),
            key_id=identity.id,
            headers=wanted,
            request_id=self.request_id,
            traceparent=self.traceparent,
        )

    def over_quota(self, context: Context, n_events: int) -> Answer | None:
        """Return the 429 when the key's quota does not hold so many events, and count them."""
        wait_secs = self.plan.rate_limiter.take(context.key_id, n_events)
        if wait_secs <= 0:
            return None
        self.site.gateway.door.refuse(n_events, context, "limit.rate")
        return answers.refuse("limit.rate", "key", "has used up its quota", retry_after_secs=wait_secs)

    def unreadable(self, context: Context, details: Sequence[Detail]) -> Answer:
        """Answer for a body that is no events at all; the books count it as one invalid event."""
        self.site.gateway.door.invalid(context, details[0]["code"])
        return answers.refuse_with(details)

    def _count_unreadable(self, context: Context, error: BodyError) -> None:
        self.site.gateway.door.invalid(context, error.code)

    def _release(self) -> None:
        """Give the memory of the body back."""
        self.site.body_bytes -= sum(map(len, self._chunks))
        self._chunks.clear()

    def on_finish(self) -> None:
        """Count the answer and give back the memory, whichever way the request ended."""
        super().on_finish()
        self._release()

    def on_connection_close(self) -> None:
        """Give back the memory of a body that will never be complete."""
        super().on_connection_close()
        self._release()


class EventHandler(IngestHandler):
    """`POST /ingest`: one event, one answer."""

    route = "ingest"
    scope = "ingest"

    async def take(self, raw: bytes, context: Context) -> Answer:
        """Judge and store the one event of the body."""
        candidate = await _off_loop(len(raw), decode_event, raw, self.plan.limits)
        if candidate.mistake is not None:
            return self.unreadable(context, [candidate.mistake])
        quota = self.over_quota(context, 1)
        if quota is not None:
            return quota
        result = await self.site.gateway.door.take([candidate], context)
        return _single_answer(result)


class BatchHandler(IngestHandler):
    """`POST /ingest/batch`: many events, judged one by one, stored in one frame."""

    route = "batch"
    scope = "batch"

    async def take(self, raw: bytes, context: Context) -> Answer:
        """Judge every event of the body and store the good ones."""
        decoded = await _off_loop(len(raw), decode_batch, raw, self._media_type, self.plan.limits)
        if decoded.details:
            return self.unreadable(context, decoded.details)
        quota = self.over_quota(context, len(decoded.candidates))
        if quota is not None:
            return quota
        result = await self.site.gateway.door.take(decoded.candidates, context, decoded.sent_at)
        return _batch_answer(result, verbose=self.get_query_argument("verbose", "") in ("1", "true"))


async def _off_loop(n_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work on so many bytes: here when they are few, else in a thread."""
    if n_bytes < THREAD_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


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
