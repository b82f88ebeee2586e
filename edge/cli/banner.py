"""What the gateway says when it is up: where it listens, what to try, where events land."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from edge.config.model import GatewayConfig, SinkConfig
from edge.config.together import PUBLISHED_KEYS
from edge.example import EXAMPLE_EVENT
from edge.logs import escape

DEMO_KEY: Final = PUBLISHED_KEYS[0]
"""The key of the default configuration: the one the published curl line carries."""
DEMO_KEY_SHA256: Final = hashlib.sha256(DEMO_KEY.encode()).hexdigest()

_MORE: Final[Mapping[str, Any]] = {"experiments": ["checkout_b"], "referrer": "https://shop.example.org/"}
"""Values for optional fields that a site may require; what is not here is an object."""


def key_hint(config: GatewayConfig) -> str:
    """Return what the curl line carries as key: the demo key where it is configured, else a shell variable."""
    if config.auth.mode == "none":
        return ""
    return DEMO_KEY if any(key.key_sha256 == DEMO_KEY_SHA256 for key in config.auth.keys) else "$EDGE_KEY"


def curl(config: GatewayConfig, address: str, key: str) -> str:
    """Return a command that posts one event the gateway takes; it can be pasted into a shell as it is.

    `address` is one of `server.listen`, with the port that was really bound.
    """
    scheme = "http" if config.server.tls is None else "https"
    if address.startswith("unix:"):
        target = f"--unix-socket {address.removeprefix('unix:')} {scheme}://localhost/ingest"
    else:
        target = f"{scheme}://{_reachable(address)}/ingest"
    return event_command(target, key, config.schema.required)


def event_command(target: str, key: str, required: Sequence[str] = ()) -> str:
    """Return the curl command that posts one valid event to `target`, with values for what a site requires on top."""
    event = dict(EXAMPLE_EVENT)
    for name in required:
        event.setdefault(name, _MORE.get(name, {}))
    header = f' -H "X-API-Key: {key}"' if key else ""
    return f"curl -X POST {target} -H \"Content-Type: application/json\"{header} -d '{json.dumps(event)}'"


def banner(config: GatewayConfig, addresses: Mapping[str, Sequence[str]], hint: str | None = None) -> str:
    """Return the text to print once the listeners are open.

    `addresses`: ``ingest`` and ``admin`` to the addresses that were really bound (`host:port`, `[v6]:port`,
    `unix:/path`). `hint` replaces what `key_hint` finds, for who knows the key itself.
    """
    key = key_hint(config) if hint is None else hint
    scheme = "http" if config.server.tls is None else "https"
    ingest = list(addresses.get("ingest", ())) or list(config.server.listen)
    admin = list(addresses.get("admin", ())) or list(config.admin.listen)
    rows = [("listening on", " ".join(_url(scheme, address) for address in ingest))]
    if config.server.workers > 1:
        rows.append(("processes", f"{config.server.workers} take events, one delivers, one looks after them"))
    rows += [
        ("events land in" if position == 0 else "", place)
        for position, place in enumerate(_landing(sink) for sink in config.sinks)
    ]
    rows.append(("metrics", " ".join(_url("http", address, "/metrics") for address in admin)))
    rows.append(("ready?", " ".join(_url("http", address, "/readyz") for address in admin)))
    lines = [f"  {click.style(name.ljust(14), dim=True)}  {escape(value)}" for name, value in rows]
    try_it = f"\n  {click.style('try', dim=True)}\n{curl(config, ingest[0], key)}\n"
    if key == "$EDGE_KEY":
        try_it += f"  {click.style('with a key of auth.keys in EDGE_KEY', dim=True)}\n"
    return "\n".join(["", *lines, try_it, "  Ctrl-C drains and stops\n"])


def _landing(sink: SinkConfig) -> str:
    """Return where a sink's events are found, as far as its options say."""
    options = sink.component.options
    kind = sink.component.type
    place = options.get("path") if kind == "file" else options.get("url") if kind == "http" else None
    if place is None:
        return f"{sink.id} ({kind})"
    # A URL may carry credentials before the host or in the query.
    text = str(place)
    if kind == "http":
        scheme, _, rest = text.partition("://")
        text = f"{scheme}://{rest.split('/', 1)[0].rpartition('@')[2]}"
    return f"{text}  ({sink.id})"


def _reachable(address: str) -> str:
    """Return host and port to connect to; an address that means every interface is reached through localhost."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in ("", "0.0.0.0", "[::]", "*", "127.0.0.1") else f"{host}:{port}"  # noqa: S104


def _url(scheme: str, address: str, path: str = "") -> str:
    return address if address.startswith("unix:") else f"{scheme}://{address}{path}"
