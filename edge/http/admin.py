"""The admin listener's routes, for operators and Prometheus. They are never reachable through the ingest listener."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import structlog
from prometheus_client.exposition import choose_encoder
from tornado.web import Application, HTTPError, RequestHandler

from edge.api import EdgeError
from edge.delivery.replay import drop, replay
from edge.delivery.selection import Selection
from edge.event import parse_time
from edge.gateway import Gateway
from edge.validation import is_datetime

log = structlog.get_logger(__name__)


class BodyShapeError(EdgeError):
    """A body that does not say what to do; the message reads after its field's name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class AdminSite:
    """What the admin handlers share."""

    gateway: Gateway
    token: str
    reload: Callable[[], Awaitable[None]]
    """Reads the configuration file again and puts it in place; raises what is wrong with it."""


class AdminHandler(RequestHandler):
    """What every admin route has in common: the token, the shape of answers."""

    def initialize(self, site: AdminSite) -> None:
        """Take what the routes share."""
        self.site = site

    def set_default_headers(self) -> None:
        """Set what every answer carries."""
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        """Ask for the token where one is configured. Compared in constant time."""
        if not self.site.token:
            return
        scheme, _, given = self.request.headers.get("Authorization", "").partition(" ")
        expected = self.site.token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected):
            self.set_header("WWW-Authenticate", "Bearer")
            self.refuse(401, "Unauthorized", "auth.invalid", "Authorization", "must be Bearer with the admin token")

    def reply(self, status: int, body: object) -> None:
        """Send a JSON answer."""
        self.set_status(status)
        self.finish(orjson.dumps(body))

    def refuse(self, status: int, error: str, code: str, field: str, message: str) -> None:
        """Send an answer that is not a success, in the shape the ingest listener uses too."""
        self.reply(status, {"error": error, "details": [{"field": field, "message": message, "code": code}]})

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Give what was raised the shape of every other answer."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, HTTPError) and status_code == 404:
            self.refuse(404, "Not found", "http.not_found", "path", "is not an admin route")
        elif isinstance(error, HTTPError) and status_code == 405:
            methods = [name for name in ("GET", "POST") if name.lower() in type(self).__dict__]
            self.set_header("Allow", ", ".join(methods))
            self.refuse(405, "Method not allowed", "http.method", "method", f"must be one of: {', '.join(methods)}")
        else:
            self.refuse(status_code, "Internal error", "internal", "gateway", "failed; its log says why")

    def compute_etag(self) -> str | None:
        """No answer is cached."""
        return None

    def json_body(self) -> dict[str, Any]:
        """Return the body as a JSON object; an empty one stands for {}."""
        try:
            body = orjson.loads(self.request.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise BodyShapeError("body", "is not JSON") from error
        if not isinstance(body, dict):
            raise BodyShapeError("body", "must be a JSON object")
        return body


class NotFoundAdminHandler(AdminHandler):
    """Answers every path that is no admin route."""

    def prepare(self) -> None:
        """Ask for the token first: strangers learn nothing, not even which routes there are."""
        super().prepare()
        if not self._finished:
            raise HTTPError(404)


class MetricsHandler(AdminHandler):
    """`GET /metrics`: Prometheus text, or OpenMetrics for those who ask for it; `?name[]=` picks metrics."""

    def get(self) -> None:
        """Send the metrics."""
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        registry: Any = self.site.gateway.metrics.registry
        names = self.get_arguments("name[]")
        if names:
            registry = registry.restricted_registry(names)
        self.set_header("Content-Type", content_type)
        self.finish(encode(registry))


class HealthAdminHandler(AdminHandler):
    """`GET /healthz`: the process answers."""

    def get(self) -> None:
        """Send 200, or 503 while draining."""
        draining = self.site.gateway.draining
        self.reply(503 if draining else 200, {"status": "fail" if draining else "pass"})


class ReadyHandler(AdminHandler):
    """`GET /readyz`: whether to send traffic here, check by check."""

    def get(self) -> None:
        """Send 200 when every check passes, else 503."""
        checks = self.site.gateway.checks()
        ok = all(check.ok for check in checks)
        body = {
            "status": "pass" if ok else "fail",
            "checks": {
                check.name: {
                    "status": "pass" if check.ok else "fail",
                    **({"detail": check.detail} if check.detail else {}),
                }
                for check in checks
            },
        }
        self.reply(200 if ok else 503, body)


class ReloadHandler(AdminHandler):
    """`POST /reload`: the same as SIGHUP, with an answer."""

    async def post(self) -> None:
        """Reload, and say how it went."""
        try:
            await self.site.reload()
        except (EdgeError, OSError) as error:
            self.refuse(409, "Not reloaded", "reload", "configuration", str(error))
            return
        self.reply(200, {"status": "success"})


class DeadLettersHandler(AdminHandler):
    """`POST /dead-letters/replay` and `/dead-letters/drop`: what `edge dead-letters` asks a running gateway to do."""

    def initialize(self, site: AdminSite, action: str = "") -> None:
        """Take what the routes share and which of the two this is."""
        super().initialize(site)
        self.action = action

    async def post(self) -> None:
        """Do it, and say how many dead letters it was."""
        try:
            body = self.json_body()
            selection, dry_run = _selection(body), body.get("dry_run") is True
        except BodyShapeError as error:
            self.refuse(400, "Bad request", "http.body", error.field, error.message)
            return
        worker = self.site.gateway.worker(selection.sink or "")
        store = worker.dead_letters if worker is not None else None
        if worker is None or store is None:
            message = "must be a configured sink that keeps dead letters"
            self.refuse(404, "Not found", "http.not_found", "sink", message)
            return
        if self.action == "replay":
            report = await replay(store, self.site.gateway.spool, worker.id, selection, dry_run=dry_run)
        else:
            report = await drop(store, selection, dry_run=dry_run)
        log.info("dead letters were handled", action=self.action, sink=worker.id, dry_run=dry_run, moved=report.moved)
        self.reply(200, {"status": "success", "matched": report.matched, "moved": report.moved})


def _selection(body: dict[str, Any]) -> Selection:
    """Return which dead letters a body means; `BodyShapeError` for what it should not hold."""
    unknown = sorted(set(body) - {"sink", "reason", "since", "until", "event_id", "seqs", "dry_run"})
    if unknown:
        raise BodyShapeError(unknown[0][:128], "is not a known field")
    for name in ("sink", "reason", "since", "until", "event_id"):
        if not isinstance(body.get(name), str | None):
            raise BodyShapeError(name, "must be a string")
    if not body.get("sink"):
        raise BodyShapeError("sink", "is required")
    seqs = body.get("seqs")
    if seqs is not None and not (isinstance(seqs, list) and all(type(seq) is int for seq in seqs)):
        raise BodyShapeError("seqs", "must be an array of whole numbers")
    return Selection(
        sink=body["sink"],
        reason=body.get("reason"),
        since=_time(body, "since"),
        until=_time(body, "until"),
        event_id=body.get("event_id"),
        seqs=None if seqs is None else frozenset(seqs),
    )


def _time(body: dict[str, Any], name: str) -> datetime | None:
    text = body.get(name)
    if text is None:
        return None
    if not is_datetime(text):
        raise BodyShapeError(name, "must be a valid ISO 8601 datetime")
    return parse_time(text)


def admin_application(site: AdminSite) -> Application:
    """Return the application of the admin listener: all its routes."""
    return Application(
        [
            (r"/metrics", MetricsHandler, {"site": site}),
            (r"/healthz", HealthAdminHandler, {"site": site}),
            (r"/readyz", ReadyHandler, {"site": site}),
            (r"/reload", ReloadHandler, {"site": site}),
            (r"/dead-letters/replay", DeadLettersHandler, {"site": site, "action": "replay"}),
            (r"/dead-letters/drop", DeadLettersHandler, {"site": site, "action": "drop"}),
        ],
        default_handler_class=NotFoundAdminHandler,
        default_handler_args={"site": site},
        log_function=lambda handler: None,
    )
