"""`edge run`: the gateway itself, until a signal ends it."""

from __future__ import annotations

from pathlib import Path

import click

from edge.cli.common import config_option


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

    raise SystemExit(runtime.run(config_path, os.environ))
