"""What parts of the file must agree on once each of them is right by itself: addresses, limits, keys, conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from edge.config import schema
from edge.config.addresses import parse_address
from edge.config.model import ComponentConfig
from edge.config.problems import Path, path_text
from edge.config.yaml_source import Source
from edge.near_names import NearNames
from edge.validation import EventValidator

PUBLISHED_KEYS = ("your_api_key", "your_web_key", "your_backend_key")
"""The keys of the default configuration, the examples and the documentation: everybody knows them."""
PUBLISHED_PREFIX = "your_"
"""What begins like this was copied out of some documentation, whatever follows."""
PUBLISHED_SHA256 = frozenset(hashlib.sha256(key.encode()).hexdigest() for key in PUBLISHED_KEYS)


def check_together(source: Source, sections: Mapping[str, Any]) -> None:
    """Add the problems of sections that contradict each other, as far as each of them is right by itself."""
    server, admin = sections.get("server"), sections.get("admin")
    spool, dead_letters = sections.get("spool"), sections.get("dead_letters")
    if server and admin:
        taken = [address for address in admin["listen"] if address in server["listen"] and not address.endswith(":0")]
        if taken:
            source.add(("admin", "listen"), "is where server listens too", "write another port")
    if spool and dead_letters and FilePath(spool["path"]) == FilePath(dead_letters["path"]):
        source.add(("dead_letters", "path"), "is the path of the spool too", "write another directory")
    if server and server["workers"] > 1:
        _check_workers(source, server["workers"], spool, sections.get("dedup"))
    if server:
        _check_limits(source, server["limits"])
        _check_keys(source, server, sections["auth"]["keys"] if "auth" in sections else [])


def _check_workers(
    source: Source, workers: int, spool: Mapping[str, Any] | None, dedup: Mapping[str, Any] | None
) -> None:
    """Look for what several processes cannot do, or not with so little."""
    if dedup and dedup["enabled"]:
        source.add(
            ("dedup", "enabled"),
            f"cannot be on with server.workers {workers}: each process would know only the ids of its own events",
            "write server.workers 1, or leave it to targets to drop repeats",
        )
    if spool and spool["max_bytes"] is not None:
        least = 2 * spool["segment_bytes"] * (workers + 1)
        if spool["max_bytes"] < least:
            source.add(
                ("spool", "max_bytes"),
                f"must hold two segments or more for each of the {workers + 1} shards of server.workers {workers}",
                f"write {least} or more, a smaller segment_bytes, or fewer workers",
            )


def _check_limits(source: Source, limits: Mapping[str, Any]) -> None:
    """Look for limits that make others unreachable: what they allow could never be taken."""
    for larger in ("body_bytes", "decompressed_bytes"):
        if limits["inflight_bytes"] < limits[larger]:
            source.add(
                ("server", "limits", "inflight_bytes"),
                f"is less than {larger}: a body of that size would be told to come again, forever",
                f"write {limits[larger]} or more, or a smaller {larger}",
            )
            break
    event_bytes: Path = ("server", "limits", "event_bytes")
    if event_bytes not in source.lines:
        return  # a smaller body than the largest event there may be is a choice, and clear to the sender
    for larger in ("body_bytes", "decompressed_bytes"):
        if limits["event_bytes"] > limits[larger]:
            source.add(
                event_bytes,
                f"is more than {larger}: an event of that size could never arrive",
                f"write {limits[larger]} or less, or a larger {larger}",
            )
            break


def _check_keys(source: Source, server: Mapping[str, Any], keys: Sequence[Mapping[str, Any]]) -> None:
    if all(parse_address(address).is_local for address in server["listen"]):
        return
    for index, key in enumerate(keys):
        if str(key.get("key", "")).startswith(PUBLISHED_PREFIX) or schema.key_digest(key) in PUBLISHED_SHA256:
            source.add(
                ("auth", "keys", index, "key" if "key" in key else "key_sha256"),
                "is a key out of the documentation, which everybody knows, while server.listen is beyond loopback",
                "write a key of your own, or listen on 127.0.0.1",
            )


def check_conditions(
    source: Source, unknown_fields: str, steps: Sequence[ComponentConfig], sinks: Sequence[ComponentConfig]
) -> None:
    """Warn of a `when:` about a field that is nearly, and not quite, one that events can have.

    Only where unknown fields are rejected. An enricher may set any field, so a name that is near to none is left alone,
    and so is every word that stands in the options of an enricher.
    """
    if unknown_fields != "reject":
        return
    known = [str(key) for key in EventValidator().schema.schema]
    set_here = {word for step in steps if step.kind == "enricher" for word in _words(step.options)}
    near_names = NearNames(known)
    parts: list[tuple[Path, ComponentConfig]] = [(("pipeline", index), step) for index, step in enumerate(steps)]
    parts += [(("sinks", sink.id), sink) for sink in sinks]
    for path, part in parts:
        for inner, name in _fields(part.when_source, (*path, "when")):
            near = None if name in known or name in set_here else near_names.get(name)
            if near is not None:
                what = f"no event has the field {name}; did you mean {near}?"
                source.warnings.append(f"{source.file}:{source.line(inner)}: {path_text(inner)}: {what}")


def _fields(condition: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield where a condition names fields, and the top-level field of each."""
    if isinstance(condition, list):
        for index, part in enumerate(condition):
            yield from _fields(part, (*path, index))
    elif isinstance(condition, Mapping):
        for key, value in condition.items():
            if key in ("any", "all", "not"):
                yield from _fields(value, (*path, key))
            else:
                yield (*path, key), key.partition(".")[0]


def _words(options: Any) -> Iterator[str]:
    """Yield every text in the options of a component: values, and keys of mappings that the operator chose."""
    if isinstance(options, str):
        yield options
    elif isinstance(options, Mapping):
        for key, value in options.items():
            yield str(key)
            yield from _words(value)
    elif isinstance(options, list):
        for item in options:
            yield from _words(item)
