"""`edge explain`: one event through the real validation and pipeline, with nothing stored and nothing delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli import output
from edge.cli.common import NEGATIVE, bind_components, config_option, fail, load_config, load_registry
from edge.logs import escape

if TYPE_CHECKING:
    from edge.api import Context, Event
    from edge.binding import Bound
    from edge.config.model import GatewayConfig
    from edge.pipeline import Explanation, StepTrace

COLORS = {
    "set": "green",
    "dropped": "yellow",
    "error": "red",
    "accepted": "green",
    "filtered": "yellow",
    "rejected": "red",
    "invalid": "red",
}

HEADER_HELP = "A request header; may be repeated. X-Forwarded-For counts as far as server.trusted_proxies says."


@click.command("explain")
@click.argument("event_file", metavar="EVENT.json", type=click.File("rb"))
@config_option
@click.option("--remote-ip", default="127.0.0.1", show_default=True, help="The address that connects.")
@click.option("--key-id", help="The id of the key it comes with. Default: the first key of the configuration.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help=HEADER_HELP)
def explain(event_file: Any, config_path: Path, remote_ip: str, key_id: str | None, headers: Sequence[str]) -> None:
    """Show what the gateway would make of one event: EVENT.json, or - for stdin.

    Runs the real validation and the real pipeline and prints what each component did, which one dropped the event and
    why, and which sinks would get it. An invalid event: the answer its sender would get, and exit 1.
    """
    raw = event_file.read()
    registry = load_registry()
    config = load_config(config_path, registry)
    bound = bind_components(config, registry)
    context = _context(config, bound, remote_ip, key_id, headers)
    event = _valid_event(raw, config)
    _print(asyncio.run(_run(bound, event, context)), bound)


def _valid_event(raw: bytes, config: GatewayConfig) -> Event:
    """Return the event as the pipeline gets it; prints the answer and leaves with 1 when there is none."""
    from edge.http import answers
    from edge.http.decode import decode_event
    from edge.judging import too_large
    from edge.validation import Detail, EventValidator

    candidate = decode_event(raw, config.server.limits)
    details: Sequence[Detail]
    mistake = candidate.mistake or too_large(candidate, config.server.limits.event_bytes)
    if mistake is not None:
        details = [mistake]
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
    """Return the context that a request with these headers from this address would have."""
    from edge.api import Context
    from edge.http.proxies import TrustedProxies

    given: dict[str, list[str]] = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header {header}: write NAME:VALUE")
        given.setdefault(name.strip().lower(), []).append(value.strip())
    proxies = TrustedProxies(config.server.trusted_proxies)
    return Context(
        received_at=datetime.now(UTC),
        remote_ip=proxies.client_ip(_address(remote_ip), given.get("x-forwarded-for", [])),
        key_id=_key_id(config, key_id),
        # As at the door: components see only the headers that some component asked for, repeated ones as one.
        headers={name: ",".join(values) for name, values in given.items() if name in bound.wanted_headers},
        request_id="explain",
    )


def _address(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        raise click.UsageError(f"--remote-ip {text}: write an IP address, such as 192.0.2.7 or 2001:db8::7") from None
    return text


def _key_id(config: GatewayConfig, wanted: str | None) -> str:
    """Return the id of the key that the event comes with: the one asked for, or the first there is."""
    from edge.http.auth import ANONYMOUS

    known = [ANONYMOUS] if config.auth.mode == "none" else [key.id for key in config.auth.keys]
    if wanted is not None and wanted not in known:
        raise click.UsageError(f"--key-id {wanted}: no such key; known: {', '.join(known)}")
    return known[0] if wanted is None else wanted


async def _run(bound: Bound, event: Event, context: Context) -> Explanation:
    """Open what the pipeline's components need, run the event through, close again. Sinks are not touched."""
    from edge.pipeline import ErrorCollector, Pipeline

    # Nobody counts here; `explain` has an observer of its own for each step.
    pipeline = Pipeline(bound.steps, ErrorCollector())
    async with AsyncExitStack() as stack:
        for lifecycle in bound.lifecycles:
            stack.push_async_callback(lifecycle.close)
            try:
                await lifecycle.open()
            except Exception as error:  # noqa: BLE001 - whatever a plugin raises
                fail(f"{lifecycle.id} cannot be opened: {type(error).__name__}: {error}")
        return pipeline.explain(event, context)


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
