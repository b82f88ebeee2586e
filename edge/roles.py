"""What a process of the gateway does: all of it, or one part of several; and which part of the configuration is its."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edge.board import Board
from edge.config.model import GatewayConfig, Key
from edge.spool.seam import Seam

SHARD = "shard-000"
"""The shard of who delivers: of the one process, or of the delivery process."""
_SHARD = re.compile(r"shard-(\d{3})")


def shard_name(number: int) -> str:
    """Return the name of a shard's directory; ingest process k has number k."""
    return f"shard-{number:03d}"


def shard_number(name: str) -> int:
    """Return the number of a shard's directory."""
    return int(name.rpartition("-")[2])


def shard_names(spool: Path) -> list[str]:
    """Return the shards that have a directory in the spool, in order."""
    try:
        return sorted(entry.name for entry in spool.iterdir() if _SHARD.fullmatch(entry.name) and entry.is_dir())
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Role:
    """The part of one process."""

    kind: Literal["whole", "ingest", "delivery"] = "whole"
    place: int = 0
    """Its place on the board; the number of its shard."""
    seams: tuple[Seam, ...] = ()
    """Between ingest process k and the delivery process lies the one with index k - 1."""
    board: Board | None = None

    @property
    def name(self) -> str:
        """What logs and metrics call the process."""
        return f"ingest-{self.place}" if self.kind == "ingest" else self.kind

    @property
    def takes_events(self) -> bool:
        """Whether senders reach this process."""
        return self.kind != "delivery"

    @property
    def delivers(self) -> bool:
        """Whether this process has the sinks."""
        return self.kind != "ingest"

    @property
    def shard(self) -> str:
        """The shard whose log this process owns."""
        return shard_name(self.place)

    @property
    def seam(self) -> Seam | None:
        """Where an ingest process tells what it has stored; None for who delivers itself."""
        return self.seams[self.place - 1] if self.kind == "ingest" else None

    @property
    def followed(self) -> dict[str, Seam]:
        """The shards that this process delivers and others write."""
        if self.kind != "delivery":
            return {}
        return {shard_name(number): seam for number, seam in enumerate(self.seams, 1)}

    def of(self, config: GatewayConfig) -> GatewayConfig:
        """Return a configuration with this process's share of what several processes divide."""
        if self.kind != "ingest":
            return config
        server, workers = config.server, config.server.workers
        limits = replace(server.limits, connections=-(-server.limits.connections // workers))
        keys = tuple(_share(key, workers) for key in config.auth.keys)
        return replace(config, server=replace(server, limits=limits), auth=replace(config.auth, keys=keys))

    def parts(self, config: GatewayConfig) -> GatewayConfig:
        """Return a configuration with the components that this process is to build."""
        return replace(
            config,
            pipeline=config.pipeline if self.takes_events else (),
            sinks=config.sinks if self.delivers else (),
        )


WHOLE = Role()


def roles(workers: int) -> Sequence[Role]:
    """Return the roles of a gateway with several ingest processes, the delivery process first.

    Makes what they share: to be called once, by the parent, before it forks.
    """
    board, seams = Board(workers), tuple(Seam() for _ in range(workers))
    return [
        Role("delivery", 0, seams, board),
        *(Role("ingest", number, seams, board) for number in range(1, workers + 1)),
    ]


def _share(key: Key, workers: int) -> Key:
    """Return a key with one process's share of its quota, which grants one event at a time at least."""
    limit = key.rate_limit
    if limit is None:
        return key
    share = replace(
        limit, events_per_sec=limit.events_per_sec / workers, burst_events=max(1, limit.burst_events // workers)
    )
    return replace(key, rate_limit=share)
