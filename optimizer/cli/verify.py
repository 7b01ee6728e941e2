"""`verify`: whether an exported bundle is, and does, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
from rich.text import Text

from optimizer.cli.options import SEED, Percent, server_options
from optimizer.cli.output import OutputConsole
from optimizer.cli.watchers import watching
from optimizer.commands.verify import VerifyRequest, verify_bundle, write_outcome
from optimizer.errors import RunError, UsageError
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
    "--within", type=Percent(), default=10.0, show_default=True,
    metavar="PERCENT", help="By how much the capacity may differ before that is drift.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of arrivals.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the outcome for programs too.",
)  # fmt: skip
def verify(
    bundle: Path, server: dict[str, str], within: float, seed: int, json_file: Path | None
) -> int:
    """Start the exported bundle DIR in a clean server, and hold it against what was measured.

    Files, configuration and outputs first, then the latency limit at the load of one replica, and
    the capacity. Exit code 0: all is as it was measured. 1: a file, the configuration or an output
    is another, or the limit is missed. 5, drift: the limit is held, but the capacity is off by more
    than --within. 4: limit or capacity could not be measured, because the server died or the load
    generator fell behind. 2 and 3 as of every command.
    """
    console = OutputConsole()
    if json_file is not None and json_file.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"--json: must lie outside of the bundle, got {json_file}")
    request = VerifyRequest(bundle, server, within / 100, seed)
    with watching(console) as watch:
        found = verify_bundle(request, watch)
    for check in found.checks:
        outcome = Text(check.outcome, style=_STYLES.get(check.outcome, "dim"))
        console.print(Text(f"{check.name}: ") + outcome + Text(f", {check.text}"), soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(Text(found.outcome, style=_STYLES[found.outcome]))
    if json_file is not None:
        write_outcome(json_file, found)
    return _EXIT_CODES[found.outcome]
