"""The command `edge`: one file for each command or group of commands.

Modules that a command needs are imported when it runs, so that `edge --help` answers at once and `edge spool verify`
works where an optional library is missing.
"""

from __future__ import annotations

import click

from edge import __version__
from edge.cli.check import check
from edge.cli.common import OrderedGroup, logs_to_stderr
from edge.cli.dead_letters import dead_letters
from edge.cli.explain import explain
from edge.cli.init import init
from edge.cli.plugins import plugins
from edge.cli.run import run
from edge.cli.schema import schema
from edge.cli.spool import spool
from edge.cli.spool_repair import repair
from edge.cli.spool_replay import replay

__all__ = ["main"]


@click.group("edge", cls=OrderedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge", message="%(prog)s %(version)s")
def main() -> None:
    """Take analytics events over HTTP, store them durably, deliver them to sinks.

    Every command exits with 0 when all is well, 1 for a negative finding (an invalid event, damage, nothing that
    matched), 2 for a command line that cannot be understood, 78 for a configuration that is wrong.
    """
    logs_to_stderr()


for _command in (init, run, check, explain, plugins, schema, dead_letters, spool):
    main.add_command(_command)
for _command in (repair, replay):
    spool.add_command(_command)
