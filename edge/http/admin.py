"""The admin listener's routes, for operators and Prometheus. They are never reachable through the ingest listener."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from prometheus_client.exposition import choose_encoder
from tornado.web import Application, HTTPError, RequestHandler

from edge.api import EdgeError
from edge.delivery.replay import drop, replay
from edge.delivery.selection import Selection, SelectionError
from edge.gateway import Gateway

log = structlog.get_logger(__name__)


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
            raise SelectionError("the body is not JSON") from error
        if not isinstance(body, dict):
            raise SelectionError("the body must be a JSON object")
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
            sink_id, dry_run = body.pop("sink", None), body.pop("dry_run", False)
            selection = Selection.from_json(body)
        except SelectionError as error:
            self.refuse(400, "Bad request", "selection", "body", str(error))
            return
        worker = self.site.gateway.worker(sink_id) if isinstance(sink_id, str) else None
        store = worker.dead_letters if worker is not None else None
        if worker is None or store is None:
            self.refuse(404, "Not found", "sink", "sink", "is not a configured sink that keeps dead letters")
            return
        if self.action == "replay":
            report = await replay(store, self.site.gateway.spool, worker.id, selection, dry_run=bool(dry_run))
        else:
            report = await drop(store, selection, dry_run=bool(dry_run))
        log.info("dead letters were handled", action=self.action, sink=sink_id, dry_run=dry_run, report=str(report))
        self.reply(200, report.to_json())


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
