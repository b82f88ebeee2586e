"""`POST /ingest` and `POST /ingest/batch` as handlers of Tornado: the way of every request, and of any server."""

from __future__ import annotations

from typing import ClassVar

from edge.http.admission import Route
from edge.http.answers import Answer
from edge.http.handlers import EdgeHandler
from edge.http.intake import Intake
from edge.http.state import Site


class IngestHandler(EdgeHandler):
    """What both ingest routes do: authenticate, read the body under its caps, hand the events to the door."""

    methods = ("POST",)
    scope: ClassVar[Route] = "ingest"

    def initialize(self, site: Site) -> None:
        """Take what the routes share and begin with an empty body."""
        super().initialize(site)
        self._intake = Intake(site, self.scope)

    @property
    def headers(self) -> object:
        """The headers of the request."""
        return self.request.headers

    @property
    def peer(self) -> str:
        """The other end of the connection."""
        peer = self.request.remote_ip or ""
        # What Tornado calls the peer on a unix socket.
        return "" if peer == "0.0.0.0" else peer  # noqa: S104

    def query_value(self, name: str) -> str | None:
        """Return the last value of a query parameter.

        Tornado's own raises for bytes that are not UTF-8. Here they become characters that no valid value has.
        """
        values = self.request.query_arguments.get(name)
        return values[-1].decode("utf-8", "surrogateescape").strip() if values else None

    def answer_by_head(self) -> Answer | None:
        """Refuse by the headers and the URL alone."""
        return self._intake.refusal_by_head(self)

    def take_chunk(self, chunk: bytes) -> None:
        """Hold a piece of the body, unless it is too much."""
        refusal = self._intake.refusal_of_chunk(chunk)
        if refusal is not None:
            self.answer_early(refusal)
        elif self.body_clock is not None:
            self.body_clock.received_bytes = self._intake.held_bytes

    def answer_early(self, answer: Answer) -> None:
        """Answer before the body has arrived, and give back what did arrive."""
        self._intake.release()
        super().answer_early(answer)

    async def respond(self) -> Answer:
        """Hand the events of the body to the door."""
        return await self._intake.respond()

    def on_finish(self) -> None:
        """Count the answer and give back the memory, whichever way the request ended."""
        super().on_finish()
        self._intake.release()

    def on_connection_close(self) -> None:
        """Give back the memory of a body that will never be complete."""
        super().on_connection_close()
        if not self._body_complete:
            self._intake.release()


class EventHandler(IngestHandler):
    """`POST /ingest`: one event, one answer."""

    route = "ingest"
    scope = "ingest"


class BatchHandler(IngestHandler):
    """`POST /ingest/batch`: many events, judged one by one, stored in one frame."""

    route = "batch"
    scope = "batch"
