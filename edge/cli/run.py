"""`edge run`: the gateway itself, until a signal ends it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.common import config_option

if TYPE_CHECKING:
    from edge.runtime import Started


@click.command("run")
@config_option
def run(config_path: Path) -> None:
    """Run the gateway until SIGTERM or Ctrl-C.

    Both drain: requests that have arrived are answered, what is not delivered stays in the spool. SIGHUP reloads the
    configuration and keeps the old one when the new one is wrong. Leaves with 78 and one line for each problem when
    the configuration is wrong.
    """
    import os

    from edge import runtime

    raise SystemExit(runtime.run(config_path, os.environ, _announce))


def _announce(started: Started) -> None:
    """Print the banner: on stdout, unless a sink's events go there."""
    from edge.cli.banner import banner

    text = banner(started.config, {"ingest": started.ingest, "admin": started.admin})
    to_stderr = any(sink.component.type == "console" for sink in started.config.sinks)
    click.echo(text, err=to_stderr)
    (sys.stderr if to_stderr else sys.stdout).flush()
