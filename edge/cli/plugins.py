"""`edge plugins`: which components are installed, where they come from, and what can be configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edge.cli import output
from edge.cli.common import OrderedGroup, fail, load_registry

if TYPE_CHECKING:
    from edge.api import Component

KINDS = ("enricher", "filter", "sink")


@click.group("plugins", cls=OrderedGroup, invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List the installed components, or show one in full."""
    if ctx.invoked_subcommand is not None:
        return
    registry = load_registry()
    from edge.cli import describe

    output.table(
        ("Kind", "Type", "From", "What it does"),
        [
            (component.kind, component.type, registry.distribution(component), describe.summary(component))
            for kind in KINDS
            for component in registry.all()
            if component.kind == kind
        ],
    )


@plugins.command("show")
@click.argument("type_name", metavar="TYPE")
@click.option("--kind", type=click.Choice(KINDS), help="Needed only when two kinds have a type of this name.")
def show(type_name: str, kind: str | None) -> None:
    """Show one component: what it does, its options and an example."""
    registry = load_registry()
    found = [
        component for component in registry.all() if component.type == type_name and kind in (None, component.kind)
    ]
    if not found:
        import difflib

        known = sorted({component.type for component in registry.all()})
        close = difflib.get_close_matches(type_name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
        fail(f"no component of type {type_name}{hint}")
    if len(found) > 1:
        fail(f"{type_name} is the type of a {' and of a '.join(one.kind for one in found)}; choose one with --kind")
    _show(found[0], registry.distribution(found[0]))


def _show(component: type[Component], distribution: str) -> None:
    from edge.cli import describe

    click.echo(f"{component.kind} {click.style(component.type, bold=True)}  ({distribution})")
    click.echo()
    click.echo(describe.text(component).replace("``", "`"))
    for title, options in (
        ("Options", describe.own_options(component)),
        (f"Options of every {component.kind}", describe.common_options_of(component)),
    ):
        if options:
            click.echo()
            click.echo(f"{title}:")
            output.table(
                ("Option", "Takes", "Default", "What it is for"),
                [
                    (one.name, one.takes, "required" if one.required else one.default, one.description)
                    for one in options
                ],
            )
    if describe.reasons(component):
        click.echo()
        click.echo(f"Drop reasons: {', '.join(describe.reasons(component))}")
    click.echo()
    click.echo("Example:")
    click.echo(describe.example(component))
