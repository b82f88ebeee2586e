"""Which shards of the spool a command works on: one that is named, or all there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.cli.common import fail

if TYPE_CHECKING:
    from edge.config.model import GatewayConfig

Command = TypeVar("Command", bound=Callable[..., Any])

shard_option = click.option(
    "--shard",
    metavar="NAME",
    help="One shard of the spool, e.g. shard-001. Default: all of them; there are several with server.workers above 1.",
)


def shards_of(config: GatewayConfig, shard: str | None = None) -> list[Path]:
    """Return the directories of the configured spool's shards, or the one that is named; leaves without any."""
    from edge.roles import SHARD, shard_names

    root = config.spool.path
    names = shard_names(root)
    if shard is not None and shard not in names:
        fail(f"there is no shard {shard} in {root}; there are {', '.join(names) or 'none'}")
    if shard is not None:
        return [root / shard]
    if not names:
        fail(f"there is no spool at {root / SHARD}: the gateway was never started here")
    return [root / name for name in names]


def only_shard(paths: list[Path], option: str) -> Path:
    """Return the one shard that an option can be about: events are numbered in each shard anew."""
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise click.UsageError(f"{option} needs --shard: events are numbered in each shard; there are {names}")
    return paths[0]


def named(shard: str) -> dict[str, str]:
    """Return what names a shard to a running gateway; nothing for the one that every gateway has."""
    from edge.roles import SHARD

    return {} if shard == SHARD else {"shard": shard}
