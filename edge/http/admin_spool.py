"""The admin listener's route for the spool: what `edge spool forget` asks a running gateway to do."""

from __future__ import annotations

import orjson

from edge.api import EdgeError
from edge.gateway import ConfiguredSinkError
from edge.http import answers
from edge.http.admin_handler import AdminHandler, refusal
from edge.http.answers import Answer


class ForgetHandler(AdminHandler):
    """`POST /spool/forget`: remove the cursor of a sink that is not configured."""

    methods = ("POST",)

    async def respond(self) -> Answer:
        """Do it, unless the sink is configured: then the gateway keeps that cursor."""
        try:
            body = orjson.loads(bytes(self.body) or b"{}")
        except orjson.JSONDecodeError:
            return refusal(400, "Bad request", "http.body", "body", "is not JSON")
        sink = body.get("sink") if isinstance(body, dict) else None
        if not isinstance(sink, str) or not sink:
            return refusal(400, "Bad request", "http.body", "sink", "must be the id of a sink")
        try:
            was_there = await self.site.gateway.forget(sink)
        except ConfiguredSinkError as error:
            return refusal(409, "Not forgotten", "spool", "sink", str(error))
        except (EdgeError, OSError) as error:
            return answers.refuse("busy.unknown", "gateway", f"cannot do it: {error}", retry_after_secs=1)
        if not was_there:
            return answers.refuse("http.not_found", "sink", "has no cursor in the spool")
        return Answer(200, {"status": "success"})
