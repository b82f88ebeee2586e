"""`POST /ingest` and `POST /ingest/batch`: from a request to the answers of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from edge.api import Context
from edge.door import Judged, Result
from edge.http import answers, bodies
from edge.http.answers import Answer
from edge.http.auth import AuthError, Identity
from edge.http.bodies import BodyError
from edge.http.decode import Decoded, decode_batch, decode_event
from edge.http.handlers import EdgeHandler
from edge.http.large import LARGE_BYTES, NoTurnError
from edge.http.state import HttpPlan, Site
from edge.outcomes import Outcome


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
        self._held_bytes = 0

    def answer_by_head(self) -> Answer | None:
        """Refuse by the headers and the URL alone: drain, key, media type, size."""
        if self.site.closing:
            return answers.busy("busy.draining")
        headers = self.request.headers
        query_key = self.query_value("api_key")
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
        declared_bytes = int(headers.get("Content-Length", "0"))
        if declared_bytes > self.plan.limits.body_bytes:
            return self._too_large()
        if self.site.body_bytes + declared_bytes > self.plan.limits.inflight_bytes:
            return answers.busy("busy.backpressure")
        return None

    def query_value(self, name: str) -> str | None:
        """Return the last value of a query parameter.

        Tornado's own raises for bytes that are not UTF-8. Here they become characters that no valid value has.
        """
        values = self.request.query_arguments.get(name)
        return values[-1].decode("utf-8", "surrogateescape").strip() if values else None

    def take_chunk(self, chunk: bytes) -> None:
        """Hold a piece of the body, unless it is too much for this request or for all requests together."""
        if self._held_bytes + len(chunk) > self.plan.limits.body_bytes:
            self.answer_early(self._too_large())
        elif not self._hold(len(chunk)):
            self.answer_early(answers.busy("busy.backpressure"))
        else:
            self._chunks.append(chunk)
            if self.body_clock is not None:
                self.body_clock.received_bytes = self._held_bytes

    def answer_early(self, answer: Answer) -> None:
        """Answer before the body has arrived, and give back what did arrive."""
        self._release()
        super().answer_early(answer)

    def _too_large(self) -> Answer:
        return answers.refuse("limit.body", "body", f"must be at most {self.plan.limits.body_bytes} bytes")

    def _hold(self, n_bytes: int) -> bool:
        """Charge so many bytes to this request; False when all requests together would hold too much."""
        if self.site.body_bytes + n_bytes > self.plan.limits.inflight_bytes:
            return False
        self.site.body_bytes += n_bytes
        self._held_bytes += n_bytes
        return True

    def _release(self) -> None:
        """Give the memory of the body back."""
        self._chunks.clear()
        self.site.body_bytes -= self._held_bytes
        self._held_bytes = 0

    async def respond(self) -> Answer:
        """Decode the body and hand its events to the door."""
        context = self._context(self._identity)
        try:
            return await self._take_body(context)
        except BodyError as error:
            self.site.gateway.door.invalid(context, error.code)
            return answers.refuse(error.code, error.field, error.message)
        except NoTurnError:
            return answers.busy("busy.backpressure")
        finally:
            self._release()

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
            return await self.take(self.decode(raw), context)
        if (refusal := self._without_quota(context)) is not None:
            return refusal
        large = self.site.large
        async with large.turn():
            if raw is None:
                raw = await large.run(
                    bodies.decompress, codings[0], data, limits.decompressed_bytes, limits.decompressed_ratio
                )
                if not self._hold(len(raw) - self._held_bytes):
                    return answers.busy("busy.backpressure")
            del data
            decoded = await large.run(self.decode, raw)
            del raw
            return await self.take(decoded, context)

    def decode(self, raw: bytes) -> Decoded:
        """Return the events of the body; blocking. The two routes differ here."""
        raise NotImplementedError

    async def take(self, decoded: Decoded, context: Context) -> Answer:
        """Judge and store the events of the body."""
        if decoded.details:
            # A body that is no events at all; the books count it as one invalid event.
            self.site.gateway.door.invalid(context, decoded.details[0]["code"])
            return answers.refuse_with(decoded.details)
        refusal = self._over_quota(context, len(decoded.candidates))
        if refusal is not None:
            return refusal
        return self.answer_for(await self.site.gateway.door.take(decoded.candidates, context, decoded.sent_at))

    def answer_for(self, result: Result) -> Answer:
        """Return the answer to what became of the events. The two routes differ here."""
        raise NotImplementedError

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

    def _without_quota(self, context: Context) -> Answer | None:
        """Return the 429 when the key may not send a single event now; nobody knows yet how many there are."""
        wait_secs = self.plan.rate_limiter.wait_secs(context.key_id)
        return _quota_used_up(wait_secs) if wait_secs > 0 else None

    def _over_quota(self, context: Context, n_events: int) -> Answer | None:
        """Return the 429 when the key's quota does not hold so many events, and count them."""
        wait_secs = self.plan.rate_limiter.take(context.key_id, n_events)
        if wait_secs <= 0:
            return None
        self.site.gateway.door.refuse(n_events, context, "limit.rate")
        return _quota_used_up(wait_secs)

    def on_finish(self) -> None:
        """Count the answer and give back the memory, whichever way the request ended."""
        super().on_finish()
        self._release()

    def on_connection_close(self) -> None:
        """Give back the memory of a body that will never be complete."""
        super().on_connection_close()
        if not self._body_complete:
            self._release()


class EventHandler(IngestHandler):
    """`POST /ingest`: one event, one answer."""

    route = "ingest"
    scope = "ingest"

    def decode(self, raw: bytes) -> Decoded:
        """Return the one event of the body."""
        candidate = decode_event(raw, self.plan.limits)
        return Decoded([candidate]) if candidate.mistake is None else Decoded([], details=[candidate.mistake])

    def answer_for(self, result: Result) -> Answer:
        """Return the answer to the one event."""
        return _single_answer(result)


class BatchHandler(IngestHandler):
    """`POST /ingest/batch`: many events, judged one by one, stored in one frame."""

    route = "batch"
    scope = "batch"

    def decode(self, raw: bytes) -> Decoded:
        """Return the events of the body."""
        return decode_batch(raw, self._media_type, self.plan.limits)

    def answer_for(self, result: Result) -> Answer:
        """Return the answer to the batch."""
        return _batch_answer(result, verbose=self.query_value("verbose") in ("1", "true"))


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
