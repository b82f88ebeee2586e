"""What the head of a request settles, whatever its body: who sends, in which form, how it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from edge.api import Context
from edge.http import answers, bodies
from edge.http.answers import Answer
from edge.http.auth import AuthError
from edge.http.bodies import BodyError
from edge.http.state import HttpPlan, Site

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

    traceparent: str

    @property
    def headers(self) -> Any:
        """Its `Headers`."""

    @property
    def peer(self) -> str:
        """Address of the other end of the connection; empty on a unix socket."""

    def query_value(self, name: str) -> str | None:
        """Return the last value of a query parameter."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A head that was let in. It says the same of every request with the same head, for as long as the plan holds."""

    plan: HttpPlan
    route: Route
    key_id: str
    media_type: str
    codings: tuple[str, ...]
    remote_ip: str
    headers: Mapping[str, str]
    """Those that some component reads."""
    traceparent: str
    verbose: bool
    """The answer to a batch is to list every event."""

    def context(self, received_at: datetime, request_id: str) -> Context:
        """Return what enrichers and filters are told of a request with this head."""
        return Context(received_at, self.remote_ip, self.key_id, self.headers, request_id, self.traceparent)


def admit(site: Site, plan: HttpPlan, route: Route, head: Head) -> Admission | Answer:
    """Let a request in by its headers and URL, or return the refusal: key, media type, coding."""
    headers = head.headers
    query_key = head.query_value("api_key")
    try:
        identity = plan.authenticator.identify(headers, query_key, headers.get("Origin"), route)
        media_type = bodies.media_type(headers.get("Content-Type"))
        codings = bodies.content_codings(headers.get("Content-Encoding"))
    except AuthError as error:
        answer = answers.refuse(error.code, error.field, error.message)
        if error.status == 401:
            answer.headers["WWW-Authenticate"] = 'Basic realm="events", Bearer'
        return answer
    except BodyError as error:
        return answers.refuse(error.code, error.field, error.message)
    return Admission(
        plan=plan,
        route=route,
        key_id=identity.id,
        media_type=media_type,
        codings=codings,
        remote_ip=plan.proxies.client_ip(head.peer, headers.get_list("X-Forwarded-For")),
        headers={name: headers[name] for name in site.gateway.wanted_headers if name in headers},
        traceparent=head.traceparent,
        verbose=head.query_value("verbose") in ("1", "true"),
    )


def refusal_by_state(site: Site, plan: HttpPlan, declared_bytes: int) -> Answer | None:
    """Refuse a request by the length it declares and by what goes on in the gateway; None: its body may come."""
    if site.closing:
        return answers.busy("busy.draining")
    if declared_bytes > plan.limits.body_bytes:
        return body_too_large(plan)
    if site.body_bytes + declared_bytes > plan.limits.inflight_bytes:
        return answers.busy("busy.backpressure")
    return None


def body_too_large(plan: HttpPlan) -> Answer:
    """Return the refusal of a body over the limit."""
    return answers.refuse("limit.body", "body", f"must be at most {plan.limits.body_bytes} bytes")
