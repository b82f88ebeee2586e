"""`edge run` from the command to the exit code: configuration, logs, and one process or several."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edge import logs
from edge.config import ConfigError, load
from edge.exits import EXIT_CONFIG, run_to_exit
from edge.process import Announce, Process, Started, warn
from edge.registry import PluginError, load_registry
from edge.supervisor import Supervisor

__all__ = ["Process", "Started", "run"]


def run(config_path: Path, environ: Mapping[str, str], announce: Announce) -> int:
    """Run a gateway until SIGTERM or SIGINT and return the exit code.

    What is wrong with the configuration goes to stderr, one line for each mistake, and the code is 78; anything else
    that keeps the gateway from starting is one line and code 1. SIGHUP reloads the configuration.
    """
    try:
        registry = load_registry()
        config = load(config_path, registry, environ)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_CONFIG
    except PluginError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    logs.configure(config.log.level, config.log.format)
    warn(config)
    # Whatever the gateway writes (spool, dead letters, files of sinks) is nobody else's business.
    os.umask(0o077)
    if config.server.workers > 1:
        return Supervisor(config, registry, environ).run(announce)
    return run_to_exit(Process(config, registry, environ).serve(announce))
