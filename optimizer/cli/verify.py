"""`verify`: compare an exported bundle with its recorded measurements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from optimizer.cli.options import (
    Percent,
    allow_code_option,
    json_option,
    seed_option,
    server_options,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line
from optimizer.cli.watchers import watching
from optimizer.commands.verify import VerifyOptions, verify_bundle
from optimizer.errors import RunError
from optimizer.export.bundle.checks import Outcome

DRIFT = 5

_EXIT_CODES = {"pass": 0, "fail": 1, "not measured": RunError.exit_code, "drift": DRIFT}
_STYLES: Mapping[Outcome, str] = {
    "pass": "green",
    "drift": "yellow",
    "fail": "red",
    "not measured": "yellow",
}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="DIR")
@server_options
@click.option(
    "--patched", type=click.Path(path_type=Path), metavar="REPOSITORY",
    help="Model repository to which the patch in DIR was applied.",
)  # fmt: skip
@click.option(
    "--within", type=Percent(), default=10.0, show_default=True, metavar="PERCENT",
    callback=lambda _, __, percent: percent / 100,
    help="Tolerance of the capacity; a larger difference is drift.",
)  # fmt: skip
@allow_code_option
@seed_option("the arrivals")
@json_option("the outcome")
def verify(**options: Any) -> int:
    """Verify the exported bundle DIR against its recorded measurements in a clean server.

    Where DIR is an exported patch, --patched names the repository that it was applied to.

    The checks are files, configuration and outputs, then the latency limit at the load of one
    replica, and the capacity. Exit code 0: all are as measured. 1: a file, the configuration or an
    output differs, or the limit is missed. 5, drift: the limit is met, but the capacity differs by
    more than --within. 4: limit or capacity could not be measured, because the server died or the
    load generator fell behind. 2 and 3 are those of every command.
    """
    console = OutputConsole()
    with watching(console) as watch:
        verification = verify_bundle(VerifyOptions(**options), watch)
    for check in verification.checks:
        outcome = Text(check.outcome, style=_STYLES.get(check.outcome, "dim"))
        console.print(Text(f"{check.name}: ") + outcome + Text(f", {check.text}"), soft_wrap=True)
    for note in verification.notes:
        print_line(console, f"note: {note}")
    console.print(Text(verification.outcome, style=_STYLES[verification.outcome]))
    return _EXIT_CODES[verification.outcome]
