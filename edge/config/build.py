"""Builds the frozen configuration out of the file's data, and checks what several parts must agree on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from edge.config import model, schema
from edge.config.checking import Failed, checked
from edge.config.checks import Options
from edge.config.components import Checked, Components, TypeRegistry
from edge.config.describe import describe
from edge.config.mistakes import UNKNOWN, did_you_mean
from edge.config.problems import MOST_PROBLEMS, ConfigError
from edge.config.secret import MASK, Secret, masked
from edge.config.together import check_conditions, check_together
from edge.config.words import key_text
from edge.config.yaml_source import Source


@dataclass(frozen=True, slots=True)
class Built:
    """A configuration for the gateway, and the same as plain data without secrets."""

    config: model.GatewayConfig
    effective: dict[str, Any]


def build(source: Source, registry: TypeRegistry) -> Built:
    """Return the configuration that a file describes; `ConfigError` with every problem in it."""
    sections = _sections(source)
    check_together(source, sections)
    pipeline, sinks = _components(source, registry)
    if source.problems:
        raise ConfigError(source.problems)
    steps = [step.config for step in pipeline]
    check_conditions(source, sections["schema"]["unknown_fields"], steps, [sink.component for sink, _ in sinks])
    effective = dict(sections)
    effective["pipeline"] = [step.plain for step in pipeline]
    effective["sinks"] = {sink.id: plain for sink, plain in sinks}
    config = _config(source, sections, tuple(steps), tuple(sink for sink, _ in sinks))
    return Built(config, _without_secrets(effective, source.data))


def _sections(source: Source) -> dict[str, Any]:
    """Return the sections of the file that have no problems; those of the others are in the source."""
    data = source.data
    if not isinstance(data, dict):
        if not source.problems:
            source.add((), "must be a mapping", "write the options with their names, such as auth: and sinks:")
        raise ConfigError(source.problems)
    elsewhere = [option.path for option in describe(schema.OPTIONS)]
    names = [key_text(key) for key in schema.OPTIONS]
    unknown = [name for name in data if name not in names and not source.is_broken((name,))]
    for name in unknown[: MOST_PROBLEMS + 1]:
        _unknown_section(source, name, names, elsewhere)
    sections: dict[str, Any] = {}
    for key, check in schema.OPTIONS.items():
        name = key_text(key)
        written = {name: data[name]} if name in data else {}
        with suppress(Failed):
            sections.update(checked(source, Options({key: check}), written, (), elsewhere=elsewhere))
    return sections


def _unknown_section(source: Source, name: str, names: list[str], elsewhere: list[str]) -> None:
    advice = did_you_mean(name, names)
    places = [place for place in elsewhere if place.rpartition(".")[2] == name]
    if not advice and places:
        advice = f"did you mean {places[0]}?"
    source.add((name,), UNKNOWN, advice or f"known: {', '.join(names)}")


def _components(
    source: Source, registry: TypeRegistry
) -> tuple[list[Checked], list[tuple[model.SinkConfig, dict[str, Any]]]]:
    """Return the components that have no problems, looked at one by one, also where the list itself has some."""
    components = Components(source, registry)
    pipeline, sinks = [], []
    written = source.data.get("pipeline")
    for index, step in enumerate(written if isinstance(written, list) else ()):
        if len(source.problems) > MOST_PROBLEMS:
            break
        with suppress(Failed):
            pipeline.append(components.step(index, _mapping(step)))
    written = source.data.get("sinks")
    for name, sink in (written if isinstance(written, dict) else {}).items():
        if len(source.problems) > MOST_PROBLEMS:
            break
        with suppress(Failed):
            sinks.append(components.sink(name, _mapping(sink)))
    return pipeline, sinks


def _mapping(data: Any) -> dict[str, Any]:
    """Return the options of a component; what is no mapping was refused with the section."""
    if isinstance(data, dict) or data is None:
        return data or {}
    raise Failed


def _config(
    source: Source,
    sections: dict[str, Any],
    pipeline: tuple[model.ComponentConfig, ...],
    sinks: tuple[model.SinkConfig, ...],
) -> model.GatewayConfig:
    server, auth = sections["server"], sections["auth"]
    spool, dead_letters, event_schema = sections["spool"], sections["dead_letters"], sections["schema"]
    tls = server["tls"]
    return model.GatewayConfig(
        source=FilePath(source.file),
        server=model.Server(
            listen=tuple(server["listen"]),
            http=server["http"],
            workers=server["workers"],
            tls=None if tls is None else model.Tls(FilePath(tls["cert_file"]), FilePath(tls["key_file"])),
            trusted_proxies=tuple(server["trusted_proxies"]),
            pre_stop_secs=server["pre_stop_secs"],
            drain_timeout_secs=server["drain_timeout_secs"],
            limits=model.Limits(**server["limits"]),
            cors_allow_origins=tuple(server["cors"]["allow_origins"]),
        ),
        admin=model.Admin(listen=tuple(sections["admin"]["listen"]), token=Secret(sections["admin"]["token"])),
        auth=model.Auth(mode=auth["mode"], keys=tuple(map(_key, auth["keys"]))),
        schema=model.EventSchema(event_schema["unknown_fields"], tuple(event_schema["required"])),
        spool=model.Spool(**{**spool, "path": FilePath(spool["path"])}),
        dead_letters=model.DeadLetters(**{**dead_letters, "path": FilePath(dead_letters["path"])}),
        dedup=model.Dedup(**sections["dedup"]),
        pipeline=pipeline,
        sinks=sinks,
        log=model.Log(**sections["log"]),
        warnings=tuple(source.warnings),
    )


def _key(options: dict[str, Any]) -> model.Key:
    quota = options["rate_limit"]
    rate_limit = None
    if quota is not None:
        # Twice the rate: a sender that was silent for two seconds may catch up at once.
        burst = quota["burst_events"] or max(1, round(2 * quota["events_per_sec"]))
        rate_limit = model.RateLimit(quota["events_per_sec"], burst)
    return model.Key(
        id=str(options["id"]),
        key_sha256=schema.key_digest(options),
        browser=options["browser"],
        allow_origins=tuple(options["allow_origins"]),
        scopes=frozenset(options["scopes"]),
        rate_limit=rate_limit,
    )


def _without_secrets(effective: dict[str, Any], written: Any) -> dict[str, Any]:
    plain = {
        **effective,
        "auth": {**effective["auth"], "keys": [_masked_key(key) for key in effective["auth"]["keys"]]},
    }
    result: dict[str, Any] = _mask_expanded(masked(plain), written)
    return result


def _masked_key(key: dict[str, Any]) -> dict[str, Any]:
    return {name: MASK if name in ("key", "key_sha256") else value for name, value in key.items()}


def _mask_expanded(value: Any, written: Any) -> Any:
    """Mask what came from a reference by where it stands, since a component's check may have made something else of it.

    Numbers and booleans are shown: an option that takes them is no secret.
    """
    if isinstance(written, Secret):
        harmless = value is None or value == "" or isinstance(value, bool | int | float)
        return value if harmless else MASK
    if isinstance(value, dict) and isinstance(written, dict):
        return {key: _mask_expanded(item, written.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        return [_mask_expanded(item, original) for item, original in zip(value, written, strict=True)]
    return value
