"""The admin listener's routes that work the spool page by page: repair, and replay of a range, for who holds its lock.

A request does a short piece of work from a position on and says where to go on.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import datetime
from typing import Any

import structlog

from edge.api import EdgeError
from edge.delivery.replay_range import (
    AppendedElsewhere,
    Range,
    RangeInterruptedError,
    RangeReport,
    oldest_received_at,
    replay_page,
)
from edge.delivery.worker import SinkWorker
from edge.door import BUSY_CODES
from edge.http import answers
from edge.http.admin_body import BodyShapeError, json_object, moment, only_known, whole_number, word
from edge.http.admin_handler import AdminHandler, refusal
from edge.http.answers import Answer
from edge.peers import LONG_SECS
from edge.roles import SHARD, shard_number
from edge.spool.log import Log

log = structlog.get_logger(__name__)


class SpoolHandler(AdminHandler):
    """What both routes have in common: a body that says from which position on."""

    methods = ("POST",)
    fields: tuple[str, ...] = ("position",)

    async def respond(self) -> Answer:
        """Do a page of the work, and say where to go on."""
        if self.site.is_draining:
            return answers.busy("busy.draining")
        try:
            body = json_object(bytes(self.body))
            only_known(body, self.fields)
            return await self.work(body, whole_number(body, "position") or 0)
        except BodyShapeError as error:
            return refusal(400, "Bad request", "http.body", error.field, error.message)
        except EdgeError as error:
            return busy(error)

    async def work(self, body: dict[str, Any], position: int) -> Answer:
        """Do a page of the work from a position on."""
        raise NotImplementedError


def busy(error: BaseException) -> Answer:
    """Return the answer that the spool refused, and why."""
    code = next((code for kind, code in BUSY_CODES if isinstance(error, kind)), "busy.unknown")
    return answers.busy(code, message=f"cannot go on: {str(error) or type(error).__name__}")


class SpoolRepairHandler(SpoolHandler):
    """`POST /spool/repair`: rewrite damaged segments without their bad bytes, those not being written any more."""

    fields = ("position", "shard")

    async def work(self, body: dict[str, Any], position: int) -> Answer:
        """Repair for about two seconds, beside the event loop, and say what was found."""
        report = await self._repair(word(body, "shard") or SHARD, position)
        if report is None:
            return answers.refuse("http.not_found", "shard", "is not one that this gateway has")
        if report["findings"]:
            missing = sum(gap["n_events"] for gap in report["missing"])
            log.info("the spool was looked through", findings=len(report["findings"]), missing=missing)
        return Answer(200, {"status": "success", **report})

    async def _repair(self, shard: str, position: int) -> dict[str, Any] | None:
        """Have the process that owns a shard repair it; None for a shard that nobody here owns."""
        source = self.site.gateway.shards.source(shard)
        if isinstance(source, Log):
            return asdict(await asyncio.to_thread(source.repair, position))
        if source is None or self.site.peers is None:
            return None
        return await self.site.peers.ask(shard_number(shard), "repair", LONG_SECS, position=position)


class SpoolReplayHandler(SpoolHandler):
    """`POST /spool/replay`: deliver events of a time again to one sink, as far as the spool still holds them."""

    fields = ("position", "end", "sink", "since", "until", "shard")

    async def work(self, body: dict[str, Any], position: int) -> Answer:
        """Append a page of the range for the sink, and say how far that came.

        The first request names no end: the answer says it, and when the oldest events that are there were received.
        """
        sink, since, until = _what(body)
        gateway = self.site.gateway
        shard = word(body, "shard") or SHARD
        workers, source = gateway.shards.workers(shard), gateway.shards.source(shard)
        if workers is None or source is None:
            return answers.refuse("http.not_found", "shard", "is not one that this gateway has")
        worker = workers.get(sink)
        if worker is None:
            return answers.refuse("http.not_found", "sink", "is not configured")
        spool, asked_end = AppendedElsewhere(source, gateway.spool), whole_number(body, "end")
        end, pending = _reach(worker, source.durable_seq)
        wanted = Range(since, until, end if asked_end is None else min(asked_end, end))
        start = max(position, spool.first_seq)
        try:
            report = await replay_page(spool, sink, wanted, start)
        except RangeInterruptedError as error:
            log.warning(
                "a range of the spool could not be replayed", sink=sink, moved=error.report.moved, error=str(error)
            )
            answer = busy(error.cause)
            return Answer(answer.status, {**answer.body, **asdict(error.report), "end": wanted.end}, answer.headers)
        if report.moved:
            log.info("events of the spool were replayed", sink=sink, **_told(report), end=wanted.end)
        found: dict[str, Any] = {"status": "success", **asdict(report), "end": wanted.end}
        if asked_end is None:
            oldest = await oldest_received_at(spool, wanted.end)
            found |= {"first": start, "pending": pending, "oldest": None if oldest is None else oldest.isoformat()}
        return Answer(200, found)


def _reach(worker: SinkWorker, durable_seq: int) -> tuple[int, int]:
    """Return where a sink stands, and how many events it has yet to get: those are not delivered again but once."""
    position = min(worker.snapshot().cursor.position, durable_seq)
    return position, durable_seq - position


def _told(report: RangeReport) -> dict[str, int]:
    return {"moved": report.moved, "position": report.position}


def _what(body: dict[str, Any]) -> tuple[str, datetime, datetime]:
    """Return sink and range of a body; `BodyShapeError` when it does not say them."""
    if not isinstance(body.get("sink"), str) or not body["sink"]:
        raise BodyShapeError("sink", "is required and must be a string")
    since, until = moment(body, "since"), moment(body, "until")
    if since is None or until is None:
        raise BodyShapeError("since" if since is None else "until", "is required")
    if until <= since:
        raise BodyShapeError("until", "must be later than since")
    return body["sink"], since, until
