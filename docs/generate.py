"""Writes the reference pages, and the template of `edge init`, out of the code; with ``--check`` it only compares.

Exit 1 and the names of the pages that drifted with ``--check``. The output depends on the code alone: no dates, no
versions, no paths of this machine.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edge import hookspecs
from edge.api import Component
from edge.cli import describe, main
from edge.cli.banner import DEMO_KEY
from edge.cli.init import PLACEHOLDER
from edge.config.schema import OPTIONS
from edge.config.words import key_text
from edge.http.answers import TABLE as ANSWERS
from edge.http.app import ROUTES
from edge.http.openapi import document
from edge.metrics import TABLE
from edge.registry import load_registry
from edge.validation import EventValidator, to_openapi

ROOT = Path(__file__).parent.parent
REFERENCE = "docs/reference"
TEMPLATE = "edge/cli/edge.yaml.template"

NOTE = "<!-- Written by docs/generate.py from the code. Change the code, then run: python docs/generate.py -->"

KINDS = {
    "enricher": ("Enrichers", "Add, replace or remove fields of an event before it is stored."),
    "filter": ("Filters", "Decide to drop events before they are stored. Dropping is counted with a reason."),
    "sink": ("Sinks", "Take batches of stored events to a target."),
}


def cell(text: str) -> str:
    """Return text that stays inside one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, with an empty line after it."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join([' --- '] * len(head))}|"
    for row in rows:
        yield f"| {' | '.join(cell(one) for one in row)} |"
    yield ""


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: reST's double backticks become single ones outside code blocks."""
    parts = re.split(r"(^```.*?^```$)", docstring, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else part.replace("``", "`") for part in parts)


def option_rows(options: Iterable[describe.Option]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the cells of an option table."""
    for one in options:
        default = "**required**" if one.required else f"`{one.default}`" if one.default else ""
        yield f"`{one.name}`", one.takes, default, one.description


def option_table(options: Iterable[describe.Option]) -> Iterator[str]:
    """Yield an option table."""
    yield from table(("option", "takes", "default", "what it is for"), option_rows(options))


def components() -> Iterator[str]:
    """Yield the page of the components that come with the gateway; other plugins have pages of their own."""
    yield "# Components"
    yield ""
    yield "What `type:` may say in YAML. `edge plugins` lists what is installed, `edge plugins show TYPE` shows one."
    yield ""
    built_in = [one for one in load_registry().all() if one.__module__.startswith("edge_plugins.")]
    for kind, (title, intro) in KINDS.items():
        yield f"## {title}"
        yield ""
        yield intro
        yield ""
        of_kind = [one for one in built_in if one.kind == kind]
        for component in of_kind:
            yield from component_section(component)
        yield f"### Options of every {kind}"
        yield ""
        yield from option_table(describe.common_options(kind))


def component_section(component: type[Component]) -> Iterator[str]:
    """Yield the section of one component."""
    yield f"### {component.type}"
    yield ""
    yield prose(describe.text(component))
    yield ""
    options = describe.own_options(component)
    if options:
        yield from option_table(options)
    else:
        yield f"It has no options beside those of every {component.kind}."
        yield ""
    if describe.reasons(component):
        yield f"Drop reasons: {', '.join(f'`{reason}`' for reason in describe.reasons(component))}."
        yield ""
    own = ", ".join(
        f"`{one.name}` is required" if one.required else f"`{one.name}` is `{one.default}`"
        for one in describe.own_choices(component)
    )
    if own:
        yield f"Unlike for every {component.kind}: {own}."
        yield ""
    yield "```yaml"
    yield describe.example(component)
    yield "```"
    yield ""


def options() -> Iterator[str]:
    """Yield the page of the configuration file."""
    yield "# The configuration file"
    yield ""
    yield "Durations are seconds, sizes bytes, as the names say. `edge check` finds every mistake and says what to"
    yield "write; `edge check --print` shows the whole effective configuration, secrets masked. Any text may hold"
    yield "`${NAME}` or `${NAME:-default}` for an environment variable; `file:path` stands for the content of a file."
    yield ""
    for key, value in OPTIONS.items():
        top = describe.options({key: value})
        yield f"## {key_text(key)}"
        yield ""
        yield top[0].description
        yield ""
        yield from option_table(top[1:] or top)
    yield "Components have options of their own beside these: see [components](components.md)."
    yield ""


def hooks() -> Iterator[str]:
    """Yield the page of the hooks."""
    yield "# Hooks"
    yield ""
    yield "What a component implements, marked with `@hookimpl` from `edge.api`. They are declared in `edge.hookspecs`."
    yield ""
    for name, function in vars(hookspecs).items():
        if not name.startswith("edge_") or not inspect.isfunction(function):
            continue
        yield f"## {name}"
        yield ""
        yield "```python"
        yield from signature(name, function)
        yield "```"
        yield ""
        yield prose(inspect.cleandoc(function.__doc__ or ""))
        yield ""


def signature(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Yield the lines of a hook's signature as a method of a component."""
    wanted = inspect.signature(function)
    arguments = ", ".join(f"{one.name}: {one.annotation}" for one in wanted.parameters.values())
    colour = "async def" if inspect.iscoroutinefunction(function) else "def"
    yield f"{colour} {name}({arguments}) -> {wanted.return_annotation}"


def metrics() -> Iterator[str]:
    """Yield the page of the metrics."""
    yield "# Metrics"
    yield ""
    yield "Served at `GET /metrics` of the admin listener. Every name is there from the first scrape on. Labels come"
    yield "from closed sets: routes, statuses, ids of the configuration. Nothing that a sender writes becomes a label."
    yield ""
    rows = (
        (
            f"`{row.name}`",
            row.exposed_as,
            ", ".join(map("`{}`".format, row.labels)),
            row.help,
        )
        for row in TABLE
    )
    yield from table(("metric", "type", "labels", "what it says"), rows)
    yield "Buckets of the histograms, in the unit of the name:"
    yield ""
    for row in TABLE:
        if row.buckets:
            yield f"- `{row.name}`: {', '.join(f'{bound:g}' for bound in row.buckets)}"
    yield ""


def http() -> Iterator[str]:
    """Yield the page of the ingest listener: what an SDK sends and the answers it gets."""
    yield "# The HTTP contract"
    yield ""
    yield "What an SDK sends and what it is told. `GET /openapi.json` of a running gateway has the same, for machines."
    yield ""
    yield "A 2xx means: every accepted event of the request is on the disk. Every other answer has one shape:"
    yield '`{"error": "...", "details": [{"field": "...", "message": "...", "code": "..."}]}`.'
    yield ""
    yield "## Routes"
    yield ""
    rows = ((f"`{path}`", ", ".join(handler.methods), _route_summary(path)) for path, handler in ROUTES)
    yield from table(("path", "methods", "what"), rows)
    yield "Both ingest routes answer `OPTIONS` for the configured origins (CORS preflight)."
    yield ""
    yield "## The event"
    yield ""
    event = to_openapi(EventValidator().schema)
    required = set(event["required"])
    yield from table(
        ("field", "what", ""),
        (
            (f"`{name}`", _field_words(field), "required" if name in required else "optional")
            for name, field in event["properties"].items()
        ),
    )
    yield "## Answers that are not a success"
    yield ""
    yield from table(
        ("status", "error", "codes", "when", "the SDK should"),
        (
            (str(int(row.status)), row.error, ", ".join(f"`{code}`" for code in row.codes), row.when, row.sdk_should)
            for row in ANSWERS
        ),
    )
    yield "`Retry-After` is in whole seconds. `X-Request-Id` is on every answer: the one you sent, or a fresh one."


def _route_summary(path: str) -> str:
    operations = document(EventValidator())["paths"][path]
    return str(next(iter(operations.values()))["summary"])


def _field_words(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(f"`{word}`" for word in field["enum"])
    if field["type"] == "array":
        return f"array of {field['items']['type']}s"
    if field.get("format") == "date-time":
        return "ISO 8601 date and time; no offset means UTC"
    return "non-empty string" if field.get("minLength") else str(field["type"])


def cli() -> Iterator[str]:
    """Yield the page of the commands."""
    yield "# The command `edge`"
    yield ""
    yield from command_section(main, "edge", 2)


def command_section(command: click.Command, path: str, level: int) -> Iterator[str]:
    """Yield the section of a command and, for a group, of the commands in it."""
    context = click.Context(command, info_name=path)
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.params if isinstance(one, click.Option)]
    usage = [path]
    usage += ["[OPTIONS]"] if options else []
    usage += [one.make_metavar(context) for one in arguments]
    usage += ["COMMAND"] if isinstance(command, click.Group) else []
    yield f"{'#' * level} {path}"
    yield ""
    yield "```"
    yield " ".join(usage)
    yield "```"
    yield ""
    yield prose(inspect.cleandoc(command.help or ""))
    yield ""
    if options:
        yield from table(("option", "default", "what it is for"), (option_cells(one, context) for one in options))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from command_section(child, f"{path} {name}", min(level + 1, 4))


def option_cells(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """Return the cells of one command-line option."""
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    if not option.is_flag:
        names += f" {option.make_metavar(context)}"
    default = option.show_default if isinstance(option.show_default, str) else ""
    if not default and option.show_default and option.default is not None:
        default = str(option.default)
    text = option.help or ""
    if option.envvar:
        text += f" Environment: `{option.envvar}`."
    return names, f"`{default}`" if default else "", text


def template() -> str:
    """Return what `edge init` writes: the default configuration, with a place for a key in place of the demo key."""
    text = (ROOT / "config" / "edge.yaml").read_text(encoding="utf-8")
    entry = re.compile(rf"^    - id: demo\b(?P<id_note>.*)\n      key: {DEMO_KEY}\b.*\n", re.MULTILINE)
    if len(entry.findall(text)) != 1:
        raise SystemExit("config/edge.yaml has no key entry with the id demo and the demo key right below it")
    note = "      # Random, made for this file. Elsewhere it may be ${NAME} or file:path, or key_sha256 in its place."
    return entry.sub(lambda found: f"    - id: web {found['id_note']}\n{note}\n      key: {PLACEHOLDER}\n", text)


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "components.md": components,
    "options.md": options,
    "hooks.md": hooks,
    "http.md": http,
    "metrics.md": metrics,
    "cli.md": cli,
}


def render(page: Callable[[], Iterator[str]]) -> str:
    """Return the text of a page."""
    title, *rest = page()
    return "\n".join([title, "", NOTE, *rest]).rstrip() + "\n"


def generated() -> dict[str, str]:
    """Return every file this script is responsible for: its path from the top of the repository, and its text."""
    return {TEMPLATE: template(), **{f"{REFERENCE}/{name}": render(page) for name, page in PAGES.items()}}


def run(*, check: bool, root: Path = ROOT) -> int:
    """Write the files below `root`, or compare them with what is there; return the exit code."""
    drifted = 0
    for name, text in generated().items():
        target = root / name
        there = target.read_text(encoding="utf-8") if target.exists() else ""
        if there == text:
            continue
        drifted += 1
        if not check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            click.echo(f"wrote {name}")
            continue
        click.echo(f"{name} is not what the code says; run: python docs/generate.py", err=True)
        diff = difflib.unified_diff(there.splitlines(), text.splitlines(), "on disk", "from the code", n=0, lineterm="")
        for line in list(diff)[:12]:
            click.echo(f"  {line}", err=True)
    return 1 if check and drifted else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the reference pages out of the code.")
    parser.add_argument("--check", action="store_true", help="only say which pages drifted; exit 1 when any did")
    raise SystemExit(run(check=parser.parse_args().check))
