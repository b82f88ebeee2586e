"""`edge check`: whether the gateway would start with this configuration, and what it would start with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from edge.cli.common import bind_components, config_option, load_config, load_effective, load_registry
from edge.logs import escape


@click.command("check")
@config_option
@click.option("--print", "print_", is_flag=True, help="Print the whole effective configuration, secrets masked.")
def check(config_path: Path, *, print_: bool) -> None:
    """Check the configuration, and that every component in it can be built.

    Exit 0, or 78 and one line for each mistake: FILE:LINE: path: what is wrong; what to write. Opens nothing and
    changes nothing: a target that is down is no mistake.
    """
    registry = load_registry()
    config = load_config(config_path, registry)
    bind_components(config, registry)
    for warning in config.warnings:
        click.echo(f"warning: {escape(warning)}", err=True)
    if print_:
        import yaml

        from edge.spool.capacity import default_capacity

        effective = load_effective(config_path, registry)
        spool = effective["spool"]
        if spool["max_bytes"] is None:
            with suppress(OSError):  # what it comes to on this machine, where that can be told
                spool["max_bytes"] = default_capacity(config.spool.path, config.spool.segment_bytes)
        text = yaml.safe_dump(effective, sort_keys=False, allow_unicode=True, width=120)
        click.echo(escape(text, keep_lines=True), nl=False)
        return
    keys = "no keys" if config.auth.mode == "none" else _count(len(config.auth.keys), "key")
    parts = (_count(len(config.sinks), "sink"), _count(len(config.pipeline), "component"), keys)
    click.echo(f"ok: {', '.join(parts)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
