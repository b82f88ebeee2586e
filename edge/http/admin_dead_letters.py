"""The admin listener's routes for dead letters: replay and drop on a running gateway, which holds their locks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from edge.api import EdgeError
from edge.config.checks import ID
from edge.delivery.dead_letters import DeadLetterStore
from edge.delivery.replay import ReplayReport, drop, replay
from edge.delivery.selection import Selection
from edge.door import BUSY_CODES
from edge.http import answers
from edge.http.admin_body import BodyShapeError, flag, json_object, moment, only_known
from edge.http.admin_handler import AdminHandler, AdminSite, refusal
from edge.http.answers import Answer

log = structlog.get_logger(__name__)


class NoDeadLettersError(EdgeError):
    """There is no such sink, or nothing it gave up on can be moved; reads after ``sink``."""


class DeadLettersHandler(AdminHandler):
    """`POST /dead-letters/replay` and `/dead-letters/drop`: what `edge dead-letters` asks a running gateway to do."""

    methods = ("POST",)

    def initialize(self, site: AdminSite, action: str = "") -> None:
        """Take what the routes share and which of the two this is."""
        super().initialize(site)
        self.action = action
        self._report = ReplayReport(0, 0)

    async def respond(self) -> Answer:
        """Do it, and say how many dead letters it was."""
        try:
            body = json_object(bytes(self.body))
            selection, dry_run = _selection(body, self.action), flag(body, "dry_run")
        except BodyShapeError as error:
            return refusal(400, "Bad request", "http.body", error.field, error.message)
        sink = selection.sink or ""
        if self.site.is_draining:
            return answers.busy("busy.draining")
        try:
            async with self._store(sink) as store:
                await self._move(store, selection, dry_run=dry_run)
        except NoDeadLettersError as error:
            return answers.refuse("http.not_found", "sink", str(error))
        except (EdgeError, OSError) as error:
            return self._interrupted(sink, error)
        report = self._report
        log.info("dead letters were handled", action=self.action, sink=sink, dry_run=dry_run, moved=report.moved)
        return Answer(200, {"status": "success", "matched": report.matched, "moved": report.moved})

    @asynccontextmanager
    async def _store(self, sink: str) -> AsyncIterator[DeadLetterStore]:
        """Give the store of a sink: that of its worker, or one for this request for what a former sink has left."""
        gateway = self.site.gateway
        worker = gateway.worker(sink)
        if worker is None and self.action == "replay":
            raise NoDeadLettersError("is not configured: its dead letters can be dropped, or replayed once it is back")
        if worker is not None and worker.dead_letters is not None:
            yield worker.dead_letters
            return
        options = gateway.config.dead_letters
        if ID.fullmatch(sink) is None or not (options.path / sink).is_dir():
            raise NoDeadLettersError("must be one that keeps dead letters, or has left some")
        store = DeadLetterStore(options.path, sink, segment_bytes=options.segment_bytes, max_bytes=options.max_bytes)
        try:
            yield store
        finally:
            await store.close()

    async def _move(self, store: DeadLetterStore, selection: Selection, *, dry_run: bool) -> None:
        def progress(report: ReplayReport) -> None:
            self._report = report

        if self.action == "replay":
            spool = self.site.gateway.spool
            self._report = await replay(store, spool, store.sink, selection, dry_run=dry_run, progress=progress)
        else:
            self._report = await drop(store, selection, dry_run=dry_run, progress=progress)

    def _interrupted(self, sink: str, error: Exception) -> Answer:
        """Answer that the spool or the store refused, and how far it got: what was moved stays moved."""
        moved = self._report.moved
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        log.warning("dead letters could not be moved", action=self.action, sink=sink, moved=moved, error=reason)
        code = next((code for kind, code in BUSY_CODES if isinstance(error, kind)), "busy.unknown")
        done = "replayed" if self.action == "replay" else "dropped"
        answer = answers.busy(code, message=f"cannot go on: {reason}; {moved} dead letters of this request were {done}")
        return Answer(answer.status, {**answer.body, "moved": moved}, answer.headers)


FILTERS = ("reason", "since", "until", "event_id", "seqs")
"""What narrows down which dead letters of a sink are meant."""


def _selection(body: dict[str, Any], action: str) -> Selection:
    """Return which dead letters a body means; `BodyShapeError` for what it should not hold."""
    only_known(body, ("sink", "dry_run", *FILTERS, *(("all",) if action == "drop" else ())))
    for name in ("sink", "reason", "since", "until", "event_id"):
        if not isinstance(body.get(name), str | None):
            raise BodyShapeError(name, "must be a string")
    if not body.get("sink"):
        raise BodyShapeError("sink", "is required")
    seqs = body.get("seqs")
    if seqs is not None and not (isinstance(seqs, list) and all(type(seq) is int for seq in seqs)):
        raise BodyShapeError("seqs", "must be an array of whole numbers")
    narrowed = any(body.get(name) is not None for name in FILTERS)
    if action == "drop" and not (flag(body, "all") or narrowed or flag(body, "dry_run")):
        raise BodyShapeError("all", "must be true to drop every dead letter of the sink; or narrow it down")
    return Selection(
        sink=body["sink"],
        reason=body.get("reason"),
        since=moment(body, "since"),
        until=moment(body, "until"),
        event_id=body.get("event_id"),
        seqs=None if seqs is None else frozenset(seqs),
    )
