"""`edge init`: a configuration to start from, with a key of its own."""

from __future__ import annotations

import os
import secrets
from importlib import resources
from pathlib import Path
from typing import Final

import click

from edge.cli.common import DEFAULT_CONFIG, fail
from edge.logs import escape

PLACEHOLDER: Final = "@KEY@"


def template() -> str:
    """Return the text of the configuration that `edge init` writes, with `PLACEHOLDER` where the key goes."""
    return resources.files("edge.cli").joinpath("edge.yaml.template").read_text(encoding="utf-8")


def new_key() -> str:
    """Return a fresh key: ``gw_`` and 32 random characters that are safe in a URL (192 bits)."""
    return f"gw_{secrets.token_urlsafe(24)}"


@click.command("init")
@click.argument("path", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)
@click.option("--force", is_flag=True, help="Replace the file when it is there.")
def init(path: Path, *, force: bool) -> None:
    """Write a commented configuration with a fresh random key to PATH (default: config/edge.yaml).

    The key is shown once; it also stands in the file, which only its owner may read. A PATH that is a directory gets
    an edge.yaml in it. A file that is there is left alone unless --force is given.
    """
    if path.is_dir():
        path /= "edge.yaml"
    key = new_key()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(path, template().replace(PLACEHOLDER, key), force=force)
    except FileExistsError:
        fail(f"{path} is there already; --force replaces it, keys included")
    shown = escape(str(path))
    click.echo(f"wrote {shown}, key {key}")
    click.echo("next:")
    click.echo(f"  edge run --config {shown}")
    click.echo(f"  {_curl(key)}")


def _curl(key: str) -> str:
    from edge.cli.banner import event_command

    return event_command("http://localhost:4000/ingest", key)


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file that only its owner may read, whole or not at all; `FileExistsError` unless `force`."""
    if not force and path.exists():
        raise FileExistsError(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        if force:
            draft.replace(path)
        else:
            # Unlike a rename, a link never replaces a file that somebody wrote in the meantime.
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
