"""Output that people read on a terminal and programs read from a pipe: tables or tab-separated lines, never both."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from edge.logs import escape

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Return a console on the current stdout or stderr; it colours only on a terminal and never guesses at markup."""
    from rich.console import Console

    return Console(
        file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def on_terminal() -> bool:
    """Say whether a person reads stdout."""
    return console().is_terminal


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under column names: a table on a terminal, else tab-separated lines with the names first."""
    screen = console()
    texts = [[escape(str(cell)) for cell in row] for row in rows]
    if not screen.is_terminal:
        for row in ([name.lower().replace(" ", "_") for name in columns], *texts):
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numeric = [all(row[index].isdigit() for row in texts) and bool(texts) for index in range(len(columns))]
    for name, is_number in zip(columns, numeric, strict=True):
        grid.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in texts:
        grid.add_row(*(Text(cell) for cell in row))
    screen.print(grid, soft_wrap=False)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print name and value a line: aligned on a terminal, tab-separated otherwise."""
    texts = [(name, escape(str(value))) for name, value in pairs]
    if not on_terminal():
        for name, value in texts:
            click.echo(f"{name}\t{value}")
        return
    width = max((len(name) for name, _ in texts), default=0)
    for name, value in texts:
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {value}")


def data(text: str) -> None:
    """Print stored bytes as they are when piped; on a terminal with whatever could steer it escaped."""
    click.echo(escape(text, keep_lines=True) if on_terminal() else text)


def mark(text: str, color: str) -> str:
    """Return `text` in a colour; click takes the colour away again when stdout is piped."""
    return click.style(text, fg=color)


class Advance(Protocol):
    """Tells a progress bar where the work is."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """`done` units of `total` are finished."""


def _unseen(done: int, total: int | None = None) -> None:
    """Stands in for a progress bar that nobody would see."""


@contextmanager
def progress(description: str) -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs; nothing at all when stderr is no terminal."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield _unseen
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(description, total=None)

        def advance(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
