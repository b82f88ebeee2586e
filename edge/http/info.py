"""The ingest listener's other routes: `GET /healthz` and `GET /openapi.json`."""

from __future__ import annotations

from edge.http import openapi
from edge.http.answers import Answer
from edge.http.handlers import EdgeHandler


class HealthHandler(EdgeHandler):
    """`GET /healthz`: whether this gateway takes events, without a detail for strangers."""

    methods = ("GET", "HEAD")
    route = "healthz"

    def answer_by_head(self) -> Answer:
        """Answer 200, or 503 while draining."""
        if self.site.closing or self.site.gateway.draining:
            return Answer(503, {"status": "fail"}, {"Retry-After": "5"})
        return Answer(200, {"status": "pass"})


class OpenApiHandler(EdgeHandler):
    """`GET /openapi.json`: the contract as this gateway's configuration makes it."""

    methods = ("GET", "HEAD")
    route = "openapi"

    def answer_by_head(self) -> Answer:
        """Answer with the document."""
        return Answer(200, openapi.document(self.site.gateway.door.plan.validator))
