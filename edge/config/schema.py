"""Every option of the configuration file, with its meaning and its default: the one place where they are declared.

The file is checked against `OPTIONS`; the reference page is generated from it, so a description is a whole sentence
for operators. The options of a component are its own: see `Component.options`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voluptuous import Optional, Required

from edge.config.addresses import AddressError, check_network, check_origin, parse_address
from edge.config.checks import (
    ListOf,
    MappingOf,
    Number,
    OneOf,
    Options,
    OrNull,
    Text,
    TrueOrFalse,
    Whole,
)
from edge.config.component_schema import ID_TEXT, MIB, SINK, STEP, with_defaults
from edge.config.mistakes import Mistake

__all__ = ["OPTIONAL_EVENT_FIELDS", "OPTIONS", "SINK", "STEP", "key_digest", "with_defaults"]

OPTIONAL_EVENT_FIELDS = (
    "element_id",
    "referrer",
    "app_version",
    "device_type",
    "platform",
    "network_type",
    "content",
    "behavior",
    "performance",
    "location",
    "commerce",
    "interaction",
    "extras",
    "experiments",
)
"""The fields of an event that a site may want required; the others are required everywhere."""


def _existing_file(text: str) -> str:
    if not Path(text).is_file():
        raise AddressError("names a file that does not exist", "write a path from where the gateway is started")
    return text


def _checked_address(text: str) -> str:
    parse_address(text)
    return text


ADDRESS = Text("host:port, [v6]:port or unix:/path", example="127.0.0.1:4000", convert=_checked_address)
ORIGINS = ListOf(
    Text("origin, or https://*.example.org", example="https://shop.example.org", convert=check_origin),
    words="a list of origins",
)
PATH = Text("path", example="var/data")
SEGMENT = Whole(65_536, 1024 * MIB, example=64 * MIB)


def _capacity(options: dict[str, Any]) -> Iterator[Mistake]:
    least = 2 * options["segment_bytes"]
    if options["max_bytes"] is not None and options["max_bytes"] < least:
        yield Mistake(
            "must hold two segments or more", f"write {least} or more, or a smaller segment_bytes", ("max_bytes",)
        )


def _one_key(options: dict[str, Any]) -> Iterator[Mistake]:
    if "key" in options and "key_sha256" in options:
        yield Mistake("cannot stand beside key", "write one of the two", ("key_sha256",))
    if "key" not in options and "key_sha256" not in options:
        yield Mistake("has neither key nor key_sha256", "write key: ${EDGE_KEY}, and set that variable")


def _addresses_differ(addresses: list[str]) -> Iterator[Mistake]:
    for index, address in enumerate(addresses):
        if address in addresses[:index] and not address.endswith(":0"):
            yield Mistake("is written twice", "remove one of the two", (index,))


LISTEN = ListOf(ADDRESS, single=True, least=1, words=f"{ADDRESS.words}; or a list", check=_addresses_differ)

LIMITS = {
    Optional("body_bytes", default=MIB, description="Largest body on the wire, before decompression."): Whole(
        1, 1024 * MIB, example=MIB
    ),
    Optional("decompressed_bytes", default=4 * MIB, description="Largest body after decompression."): Whole(
        1, 1024 * MIB, example=4 * MIB
    ),
    Optional(
        "decompressed_ratio", default=100, description="A body may grow this many times when decompressed."
    ): Whole(1, 10_000, example=100),
    Optional("event_bytes", default=65_536, description="Largest single event."): Whole(256, 64 * MIB, example=65_536),
    Optional("batch_events", default=1000, description="Most events in one request."): Whole(
        1, 1_000_000, example=1000
    ),
    Optional("depth", default=32, description="Deepest nesting of objects and arrays in an event."): Whole(1, 200),
    Optional("header_bytes", default=16_384, description="Most bytes in the headers of a request."): Whole(
        1024, MIB, example=16_384
    ),
    Optional("connections", default=8000, description="Most connections open at one moment."): Whole(
        1, 1_000_000, example=8000
    ),
    Optional(
        "inflight_bytes",
        default=64 * MIB,
        description="Most bytes in bodies being read or handled at one moment; past it requests get 503 and try again.",
    ): Whole(1, example=64 * MIB),
    Optional("idle_secs", default=20, description="A connection that says nothing for so long is closed."): Number(
        0, above=True
    ),
    Optional("body_bytes_per_sec", default=8192, description="A body that arrives more slowly is cut off."): Whole(
        1, example=8192
    ),
}

TLS = {
    Required("cert_file", description="Certificate chain, PEM."): Text(
        "path", example="tls/cert.pem", convert=_existing_file
    ),
    Required("key_file", description="Private key, PEM."): Text("path", example="tls/key.pem", convert=_existing_file),
}

SERVER = {
    Optional("listen", default="127.0.0.1:4000", description="Where SDKs post events."): LISTEN,
    Optional(
        "http", default="fast", description="The HTTP server: fast (llhttp and asyncio), or Tornado's own."
    ): OneOf("fast", "tornado"),
    Optional(
        "workers",
        default=1,
        description="Processes that take events, each with a shard of the spool. Above 1 one more process delivers, and"
        " each one that takes events gets its share of limits.connections, of the keys' rate limits and of"
        " spool.max_bytes.",
    ): Whole(1, 64, example=2),
    Optional("tls", default=None, description="Encrypts the ingest listeners; off when absent."): OrNull(Options(TLS)),
    Optional(
        "trusted_proxies",
        default=list,
        description="Networks whose X-Forwarded-For is believed; of anybody else it is ignored.",
    ): ListOf(Text("network", example="10.0.0.0/8", convert=check_network), words="a list of networks"),
    Optional(
        "pre_stop_secs", default=0, description="After a stop signal, goes on answering for so long while not ready."
    ): Number(0),
    Optional(
        "drain_timeout_secs", default=10, description="At a stop, sinks get so long to finish what they have begun."
    ): Number(0),
    Optional("limits", default=dict, description="What one request or connection may use."): Options(LIMITS),
    Optional("cors", default=dict, description="Which web pages may post events."): Options(
        {
            Optional(
                "allow_origins",
                default=list,
                description="Origins, exactly as browsers send them, or https://*.example.org.",
            ): ORIGINS
        }
    ),
}


def _admin_token(options: dict[str, Any]) -> Iterator[Mistake]:
    if not options["token"] and not all(parse_address(address).is_local for address in options["listen"]):
        yield Mistake(
            "is required when admin listens beyond loopback",
            "write token: ${EDGE_ADMIN_TOKEN}, or listen on 127.0.0.1",
            ("token",),
        )


ADMIN = {
    Optional(
        "listen",
        default="127.0.0.1:4001",
        description="Where operators and Prometheus ask; never reachable through ingest.",
    ): LISTEN,
    Optional(
        "token", default="", description="Asked for as a bearer token; required when listening beyond loopback."
    ): Text("text without spaces", pattern=re.compile(r"[!-~]{1,512}"), example="${EDGE_ADMIN_TOKEN}", empty=True),
}

RATE_LIMIT = {
    Required("events_per_sec", description="Events a second that the key may send in the long run."): Number(
        0, above=True
    ),
    Optional(
        "burst_events", default=None, description="Events it may send at once; twice events_per_sec when absent."
    ): OrNull(Whole(1)),
}

KEY = {
    Required("id", description="What logs and metrics call the key."): ID_TEXT,
    Optional("key", description="The key itself, best as ${NAME} or file:path."): Text(
        "1 to 256 visible ASCII characters", pattern=re.compile(r"[!-~]{1,256}"), example="${EDGE_KEY}"
    ),
    Optional("key_sha256", description="In place of the key: its SHA-256 in hexadecimal."): Text(
        "64 hexadecimal digits",
        pattern=re.compile(r"[0-9A-Fa-f]{64}"),
        example="the output of: printf %s KEY | sha256sum",
    ),
    Optional(
        "browser", default=False, description="May be sent as ?api_key=, for pages that can set no header."
    ): TrueOrFalse(),
    Optional(
        "allow_origins",
        default=list,
        description="Only pages of these origins may use the key; empty: no page is asked.",
    ): ORIGINS,
    Optional("scopes", default=lambda: ["ingest", "batch"], description="The routes the key may post to."): ListOf(
        OneOf("ingest", "batch"), least=1
    ),
    Optional("rate_limit", default=None, description="The key's quota; none when absent."): OrNull(Options(RATE_LIMIT)),
}


def _mode_and_keys(options: dict[str, Any]) -> Iterator[Mistake]:
    if options["mode"] == "keys" and not options["keys"]:
        yield Mistake(
            "is required with mode keys", "write a key, or auth: {mode: none} to let everybody post", ("keys",)
        )
    if options["mode"] == "none" and options["keys"]:
        yield Mistake("would not be asked for with mode none", "remove the keys, or write mode: keys", ("keys",))


def _keys_differ(keys: list[dict[str, Any]]) -> Iterator[Mistake]:
    ids: dict[str, int] = {}
    digests: dict[str, int] = {}
    for index, key in enumerate(keys):
        first = ids.setdefault(key["id"], index)
        if first != index:
            yield Mistake(f"is the id of auth.keys[{first}] too", "write another", (index, "id"))
        first = digests.setdefault(key_digest(key), index)
        if first != index:
            name = "key" if "key" in key else "key_sha256"
            yield Mistake(f"is the key of auth.keys[{first}] too", "write another", (index, name))


def key_digest(options: Mapping[str, Any]) -> str:
    """Return the lower-case SHA-256 of the key that checked options of `auth.keys` hold."""
    if "key_sha256" in options:
        return str(options["key_sha256"]).lower()
    return hashlib.sha256(str(options["key"]).encode()).hexdigest()


AUTH = {
    Optional("mode", default="keys", description="keys: only who has one may post. none: everybody may."): OneOf(
        "keys", "none"
    ),
    Optional("keys", default=list, description="The keys that may post events."): ListOf(
        Options(KEY, check=_one_key), words="a list of keys", check=_keys_differ
    ),
}

SCHEMA = {
    Optional(
        "unknown_fields",
        default="reject",
        description="What becomes of a field that no event has: its event, or the field.",
    ): OneOf("reject", "keep", "drop"),
    Optional("required", default=list, description="Optional fields that this site wants required."): ListOf(
        OneOf(*OPTIONAL_EVENT_FIELDS)
    ),
}

SPOOL = {
    Optional(
        "path", default="var/spool", description="Directory of the spool, from where the gateway is started."
    ): PATH,
    Optional(
        "durability",
        default="disk",
        description="What a 2xx waits for: disk (fdatasync), os (a power cut loses events), memory.",
    ): OneOf("disk", "os", "memory"),
    Optional("segment_bytes", default=64 * MIB, description="Size of one file of the spool."): SEGMENT,
    Optional(
        "max_bytes",
        default=None,
        description="Most disk space of the spool; when absent 10 GiB, or half of its volume where that is less.",
    ): OrNull(Whole(1, example=10 * 1024 * MIB)),
    Optional(
        "retain_secs",
        default=0,
        description="Delivered events stay for so long, to be replayed, unless their room is needed; a restart begins"
        " the time anew.",
    ): Number(0),
}

DEAD_LETTERS = {
    Optional(
        "path",
        default="var/dead-letters",
        description="Directory of the dead letters, from where the gateway is started.",
    ): PATH,
    Optional("segment_bytes", default=4 * MIB, description="Size of one file of the dead letters."): SEGMENT,
    Optional("max_bytes", default=1024 * MIB, description="Most disk space of one sink's dead letters."): Whole(
        1, example=1024 * MIB
    ),
}

DEDUP = {
    Optional(
        "enabled", default=False, description="Answers an event whose event_id was seen before as a duplicate."
    ): TrueOrFalse(),
    Optional(
        "window_secs",
        default=600,
        description="Ids are remembered for so long; when enabled, the spool keeps delivered events for so long too.",
    ): Number(0, above=True),
    Optional(
        "window_events",
        default=1_000_000,
        description="Most ids that are remembered, of all keys together; a million take about 170 MB of memory.",
    ): Whole(1, example=1_000_000),
}

LOG = {
    Optional("level", default="info", description="The least important lines that are written."): OneOf(
        "debug", "info", "warning", "error"
    ),
    Optional("format", default="auto", description="auto: text on a terminal, JSON lines elsewhere."): OneOf(
        "auto", "json", "text"
    ),
}

OPTIONS = {
    Optional("server", default=dict, description="The ingest listeners."): Options(SERVER),
    Optional("admin", default=dict, description="The admin listeners: metrics, health."): Options(
        ADMIN, check=_admin_token
    ),
    Required(
        "auth",
        msg="is required; write keys, or auth: {mode: none} to let everybody post",
        description="Who may post events. There is no default.",
    ): Options(AUTH, check=_mode_and_keys),
    Optional("schema", default=dict, description="What this site decides about the event schema."): Options(SCHEMA),
    Optional("spool", default=dict, description="Where accepted events lie until every sink has had them."): Options(
        SPOOL, check=_capacity
    ),
    Optional("dead_letters", default=dict, description="Where events lie that were given up on."): Options(
        DEAD_LETTERS, check=_capacity
    ),
    Optional("dedup", default=dict, description="Finds events that were sent twice."): Options(DEDUP),
    Optional(
        "pipeline",
        default=list,
        description="The enrichers and filters an event passes before it is stored, in this order.",
    ): ListOf(Options(STEP, open=True), words="a list of enrichers and filters"),
    Required(
        "sinks", msg="is required; write at least one sink", description="Where events go, by the sink's id."
    ): MappingOf(Options(SINK, open=True), words="a mapping of ids to sinks", name=ID_TEXT, least=1),
    Optional("log", default=dict, description="The gateway's own log, on standard error."): Options(LOG),
}
"""The whole file. The options of `pipeline` and `sinks` are completed by those of each component's type."""
