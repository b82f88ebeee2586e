"""`edge explain`: one event through the real validation and pipeline, with nothing stored and nothing delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli import output
from edge.cli.common import CONFIG, NEGATIVE, config_option, fail, load_config, load_registry
from edge.logs import escape

if TYPE_CHECKING:
    from edge.api import Context, Event
    from edge.binding import Bound
    from edge.config.model import GatewayConfig
    from edge.pipeline import Explanation, Pipeline, StepTrace

COLORS = {
    "set": "green",
    "dropped": "yellow",
    "error": "red",
    "accepted": "green",
    "filtered": "yellow",
    "rejected": "red",
    "invalid": "red",
}


@click.command("explain")
@click.argument("event_file", metavar="EVENT.json", type=click.File("rb"))
@config_option
@click.option("--remote-ip", default="127.0.0.1", show_default=True, help="The address the event comes from.")
@click.option("--key-id", help="The id of the key it comes with. Default: the first key of the configuration.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A request header; may be repeated.")
def explain(event_file: Any, config_path: Path, remote_ip: str, key_id: str | None, headers: Sequence[str]) -> None:
    """Show what the gateway would make of one event: EVENT.json, or - for stdin.

    Runs the real validation and the real pipeline and prints what each component did, which one dropped the event and
    why, and which sinks would get it. An invalid event: the answer its sender would get, and exit 1.
    """
    raw = event_file.read()
    registry = load_registry()
    config = load_config(config_path, registry)
    from edge.binding import BindingError, bind

    try:
        bound = bind(config, registry)
    except BindingError as error:
        fail(str(error), CONFIG)
    event = _valid_event(raw, config)
    context = _context(config, bound, remote_ip, key_id, headers)
    _print(asyncio.run(_run(bound, event, context)), bound)


def _valid_event(raw: bytes, config: GatewayConfig) -> Event:
    """Return the event as the pipeline gets it; prints the answer and leaves with 1 when there is none."""
    from edge.http import answers
    from edge.http.decode import decode_event
    from edge.validation import Detail, EventValidator

    candidate = decode_event(raw, config.server.limits)
    details: Sequence[Detail]
    if candidate.mistake is not None:
        details = [candidate.mistake]
    elif len(raw) > config.server.limits.event_bytes:
        message = f"must be at most {config.server.limits.event_bytes} bytes"
        details = [Detail(field="event", message=message, code="limit.event")]
    else:
        validator = EventValidator(config.schema.unknown_fields, config.schema.required)
        event, details = validator.validate(candidate.value)
        if event is not None:
            return event
    answer = answers.refuse_with(details)
    click.echo(f"{output.mark('invalid', COLORS['invalid'])}: the sender is answered {answer.status}")
    click.echo(escape(json.dumps(answer.body, indent=2, ensure_ascii=False), keep_lines=True))
    raise SystemExit(NEGATIVE)


def _context(
    config: GatewayConfig, bound: Bound, remote_ip: str, key_id: str | None, headers: Sequence[str]
) -> Context:
    from edge.api import Context

    given = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise click.UsageError(f"--header {header}: write NAME:VALUE")
        given[name.strip().lower()] = value.strip()
    if key_id is None:
        key_id = "anonymous" if config.auth.mode == "none" or not config.auth.keys else config.auth.keys[0].id
    return Context(
        received_at=datetime.now(UTC),
        remote_ip=remote_ip,
        key_id=key_id,
        # As at the door: components see only the headers that some component asked for.
        headers={name: value for name, value in given.items() if name in bound.wanted_headers},
        request_id="explain",
    )


async def _run(bound: Bound, event: Event, context: Context) -> Explanation:
    """Open what the pipeline's components need, run the event through, close again. Sinks are not touched."""
    from edge.pipeline import Pipeline

    pipeline: Pipeline = Pipeline(bound.steps, _Uncounted())
    async with AsyncExitStack() as stack:
        for lifecycle in bound.lifecycles:
            stack.push_async_callback(lifecycle.close)
            try:
                await lifecycle.open()
            except Exception as error:  # noqa: BLE001 - whatever a plugin raises
                fail(f"{lifecycle.id} cannot be opened: {type(error).__name__}: {error}")
        return pipeline.explain(event, context)


class _Uncounted:
    """A pipeline observer for a pipeline that nobody measures."""

    def component_timed(self, step: object, duration_secs: float) -> None:
        """Durations are not shown."""

    def component_failed(self, step: object, error: BaseException) -> None:
        """The trace of the step has the error."""


def _print(explanation: Explanation, bound: Bound) -> None:
    from edge.outcomes import Outcome

    verdict = explanation.verdict
    if explanation.steps:
        output.table(
            ("Component", "Type", "Kind", "Did", "What"),
            [(step.id, step.type, step.kind, step.did, _what(step)) for step in explanation.steps],
        )
    not_reached = len(bound.steps) - len(explanation.steps)
    if not_reached:
        click.echo(f"{not_reached} more component{'s' if not_reached > 1 else ''} not reached")
    outcome = output.mark(verdict.outcome.value, COLORS[verdict.outcome.value])
    click.echo(f"outcome: {outcome}{f' ({escape(verdict.reason)})' if verdict.reason else ''}")
    if verdict.outcome is not Outcome.ACCEPTED:
        answer = "200, and nothing is stored" if verdict.outcome is Outcome.FILTERED else "503, to be sent again"
        click.echo(f"answer: {answer}")
        return
    for sink, _config in bound.sinks:
        wants = _wants(sink.when, verdict.event)
        click.echo(f"sink {escape(sink.id)} ({sink.type}): {wants}")
    click.echo("event as stored:")
    click.echo(escape(json.dumps(verdict.event, ensure_ascii=False), keep_lines=True))


def _wants(when: Any, event: Mapping[str, Any]) -> str:
    return (
        output.mark("gets it", "green") if when is None or when(event) else output.mark("skipped by its when", "yellow")
    )


def _what(step: StepTrace) -> str:
    """Return in one line what a component did to the event."""
    if step.error:
        return step.error
    if step.reason:
        return f"reason {step.reason}"
    changes = [
        f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in step.fields_set.items()
    ]
    changes += [f"{name} removed" for name in step.fields_removed]
    if changes:
        return ", ".join(changes)
    return {"not asked": "its when does not match", "kept": "keeps the event"}.get(step.did, "")
