"""`init`: write a commented space file, or the JSON schema of space files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.space_file.schema import json_schema


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("space.yaml"))
@click.option(
    "--schema", is_flag=True, help="Write the JSON schema of space files instead, for editors."
)
def init(path: Path, schema: bool) -> None:
    """Write a commented space file to PATH (default: space.yaml)."""
    if schema:
        text = json.dumps(json_schema(), indent=2) + "\n"
    else:
        text = shipped("space_template.yaml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path}: must not exist yet; it is not overwritten") from error
    except OSError as error:
        raise UsageError(f"{path}: must be writable ({error.strerror})") from error
    click.echo(f"wrote {path}")
    if not schema:
        click.echo(f"edit it, then run: python -m optimizer run {path}")
