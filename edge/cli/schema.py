"""`edge schema`: the event schema as the gateway checks it, for SDKs and other tools."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge.cli.common import config_option, load_config, load_registry


@click.command("schema")
@config_option
@click.option("--openapi", is_flag=True, help="Print the whole OpenAPI document, with every answer.")
def schema(config_path: Path, *, openapi: bool) -> None:
    """Print the event schema as JSON, with the required fields and the policy of this configuration."""
    config = load_config(config_path, load_registry())
    from edge.http.openapi import document
    from edge.validation import EventValidator, to_openapi

    validator = EventValidator(config.schema.unknown_fields, config.schema.required)
    click.echo(json.dumps(document(validator) if openapi else to_openapi(validator.schema), indent=2))
