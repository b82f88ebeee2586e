"""What commands share: exit codes, the `--config` option, loading with problems on stderr."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from edge.logs import escape

if TYPE_CHECKING:
    from edge.binding import Bound
    from edge.config.model import GatewayConfig
    from edge.registry import Registry

OK: Final = 0
NEGATIVE: Final = 1
"""A finding: damage, an invalid event, nothing that matched, or an operation that did not succeed."""
CONFIG: Final = 78
"""The configuration or a plugin is wrong (EX_CONFIG of sysexits.h): starting again will not help."""

DEFAULT_CONFIG: Final = Path("config/edge.yaml")

Command = TypeVar("Command", bound=Callable[..., Any])

config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    envvar="EDGE_CONFIG",
    show_default=str(DEFAULT_CONFIG),
    show_envvar=True,
    metavar="PATH",
    help="The configuration file.",
)


def fail(message: str, code: int = NEGATIVE) -> NoReturn:
    """Print one line on stderr and leave with `code`."""
    click.echo(f"edge: {escape(message, keep_lines=True)}", err=True)
    raise SystemExit(code)


def load_registry() -> Registry:
    """Return the installed components; leaves with 78 when a plugin cannot be loaded."""
    from edge.registry import PluginError
    from edge.registry import load_registry as load

    try:
        return load()
    except PluginError as error:
        fail(str(error), CONFIG)


def load_config(path: Path, registry: Registry) -> GatewayConfig:
    """Return the checked configuration; leaves with 78 and one line for each problem on stderr."""
    from edge.config import load

    with _told_problems(path):
        return load(path, registry, os.environ)


def load_effective(path: Path, registry: Registry) -> dict[str, Any]:
    """Return the whole configuration as plain data with secrets masked; leaves like `load_config`."""
    from edge.config import effective

    with _told_problems(path):
        return effective(path, registry, os.environ)


def bind_components(config: GatewayConfig, registry: Registry) -> Bound:
    """Return the configured components, built; leaves with 78 and one line for each that cannot be used."""
    from edge.binding import BindingError, bind

    try:
        return bind(config, registry)
    except BindingError as error:
        for problem in error.problems:
            click.echo(escape(problem), err=True)
        raise SystemExit(CONFIG) from None


def logs_to_stderr() -> None:
    """Keep log lines out of what a command prints: warnings go to stderr, less is not said. `edge run` sets up its own.

    A process that has its logs set up keeps them.
    """
    import structlog

    from edge import logs

    if not structlog.is_configured():
        logs.configure("warning", "text")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP (the terminal went away), end the block as Ctrl-C does: with `KeyboardInterrupt`."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse_root(directory: Path) -> None:
    """Leave with a message when root is about to write into a directory of another user: who could not read it then."""
    try:
        owner = directory.stat().st_uid
    except OSError:
        return
    if os.geteuid() == 0 and owner != 0:
        import pwd

        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        fail(f"{directory} belongs to {name}, who could not read what root writes there; use `sudo -u {name} edge …`")


@contextmanager
def _told_problems(path: Path) -> Iterator[None]:
    from edge.config import ConfigError

    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            click.echo(escape(str(problem)), err=True)
        if not path.exists():
            click.echo(f"edge: `edge init {escape(str(path))}` writes a configuration to start from", err=True)
        raise SystemExit(CONFIG) from None


class OrderedGroup(click.Group):
    """A group that lists its commands in the order they were added, and turns known errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of `add_command`."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what the gateway raises on purpose is told without a traceback."""
        from edge.api import EdgeError

        try:
            return super().invoke(ctx)
        except EdgeError as error:
            fail(str(error) or type(error).__name__)
        except BrokenPipeError:
            raise  # whoever read stdout has gone; click leaves quietly
        except OSError as error:
            advice = "; run this as the user that runs the gateway" if isinstance(error, PermissionError) else ""
            fail(f"{error.filename or 'the system'}: {error.strerror}{advice}")
