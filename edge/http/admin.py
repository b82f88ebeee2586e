"""The admin listener's routes, for operators and Prometheus. They are never reachable through the ingest listener."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from tornado.web import Application, HTTPError

from edge.api import EdgeError
from edge.http import answers
from edge.http.admin_dead_letters import DeadLettersHandler
from edge.http.admin_handler import AdminHandler, AdminSite, refusal
from edge.http.admin_spool import ForgetHandler
from edge.http.admin_spool_pages import SpoolRepairHandler, SpoolReplayHandler
from edge.http.answers import Answer

__all__ = ["AdminSite", "admin_application"]


class NotFoundAdminHandler(AdminHandler):
    """Answers every path that is no admin route, the token asked for first: strangers learn nothing."""


class MetricsHandler(AdminHandler):
    """`GET /metrics`: Prometheus text, or OpenMetrics for those who ask for it; `?name[]=` picks metrics."""

    methods = ("GET", "HEAD")

    async def respond(self) -> Answer | None:
        """Send the metrics."""
        try:
            names = self.get_arguments("name[]")
        except HTTPError:
            return answers.refuse("http.malformed", "name[]", "must be UTF-8")
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        registry = await self.site.registry()
        if names:
            registry = registry.restricted_registry(names)
        self.set_header("Content-Type", content_type)
        self.finish(encode(registry))
        return None


class HealthAdminHandler(AdminHandler):
    """`GET /healthz`: the process answers."""

    methods = ("GET", "HEAD")

    async def respond(self) -> Answer:
        """Answer 200, or 503 while draining."""
        draining = self.site.is_draining
        return Answer(503 if draining else 200, {"status": "fail" if draining else "pass"})


class ReadyHandler(AdminHandler):
    """`GET /readyz`: whether to send traffic here, check by check."""

    methods = ("GET", "HEAD")

    async def respond(self) -> Answer:
        """Answer 200 when every check passes, else 503."""
        checks = await self.site.checks()
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
        return Answer(200 if ok else 503, body)


class ReloadHandler(AdminHandler):
    """`POST /reload`: the same as SIGHUP, with an answer."""

    methods = ("POST",)

    async def respond(self) -> Answer:
        """Reload, and say how it went."""
        try:
            await self.site.reload()
        except (EdgeError, OSError) as error:
            return refusal(409, "Not reloaded", "reload", "configuration", str(error))
        return Answer(200, {"status": "success"})


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
            (r"/spool/forget", ForgetHandler, {"site": site}),
            (r"/spool/repair", SpoolRepairHandler, {"site": site}),
            (r"/spool/replay", SpoolReplayHandler, {"site": site}),
        ],
        default_handler_class=NotFoundAdminHandler,
        default_handler_args={"site": site},
        log_function=lambda handler: None,
    )
