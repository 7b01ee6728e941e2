"""`init`: write a commented space file, or the JSON schema of space files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from optimizer.commands.init import write_new, write_space_from
from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.space_file.schema import json_schema


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("space.yaml"))
@click.option(
    "--from",
    "repository",
    type=click.Path(path_type=Path),
    metavar="REPOSITORY[/MODEL]",
    help="Write the file for a model of an existing Triton model repository.",
)
@click.option(
    "--schema", is_flag=True, help="Write the JSON schema of space files instead, for editors."
)
def init(path: Path, repository: Path | None, schema: bool) -> None:
    """Write a commented space file to PATH (default: space.yaml)."""
    if schema and repository is not None:
        raise UsageError("give one of --from and --schema, not both")
    if repository is not None:
        write_space_from(repository, path)
    elif schema:
        write_new(path, json.dumps(json_schema(), indent=2) + "\n")
    else:
        template = shipped("space_template.yaml").read_text(encoding="utf-8")
        write_new(path, template.replace("run space.yaml", f"run {shlex.quote(path.name)}"))
    click.echo(f"wrote {path}")
    if not schema:
        click.echo(f"edit it, then run: python -m optimizer run {path}")
