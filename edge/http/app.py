"""The ingest listener's routes, in one list."""

from __future__ import annotations

from tornado.web import Application

from edge.http.handlers import EdgeHandler, NotFoundHandler
from edge.http.info import HealthHandler, OpenApiHandler
from edge.http.ingest import BatchHandler, EventHandler
from edge.http.state import Site

ROUTES: tuple[tuple[str, type[EdgeHandler]], ...] = (
    (r"/ingest", EventHandler),
    (r"/ingest/batch", BatchHandler),
    (r"/healthz", HealthHandler),
    (r"/openapi.json", OpenApiHandler),
)


def ingest_application(site: Site) -> Application:
    """Return the application of the ingest listener. It has no static files, no cookies, no debug pages."""
    return Application(
        [(path.replace(".", r"\."), handler, {"site": site}) for path, handler in ROUTES],
        default_handler_class=NotFoundHandler,
        default_handler_args={"site": site},
        log_function=lambda handler: None,
        site=site,
    )
