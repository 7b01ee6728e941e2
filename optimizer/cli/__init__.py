"""The command line: one module for each command; errors become exit codes here."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from types import FrameType
from typing import Any

import click

from optimizer import __version__
from optimizer.cli.interruption import Interrupted, discard_output, is_closed_output
from optimizer.cli.process_title import SECRET_VARIABLES, hide_passwords
from optimizer.errors import OptimizerError, RunError, StorageError
from optimizer.files.untrusted import printable

INTERRUPTED = 130

OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's garbage collector starts after 700 new objects, and goes through those of thousands of
trials again and again."""


def _interrupt(number: int, _: FrameType | None) -> None:
    # A second signal ends the process at once; its child processes end with it.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(signal.Signals(number).name)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


GROUPS: Mapping[str, Mapping[str, str]] = {
    "Start": {
        "init": "Write a commented space file.",
        "doctor": "Check what this machine can run and what to install.",
        "run": "Search for the cheapest configuration. Rerun to resume.",
        "status": "Show the progress of studies.",
        "dashboard": "Show a study in optuna-dashboard.",
    },
    "Analyse": {
        "report": "Write the results of a study as a page and as Markdown.",
        "compare": "Compare studies with the first one.",
        "pareto": "Compare the cost of latency limits.",
        "simulate": "Predict a configuration from a study's measurements.",
        "measure": "Measure one configuration without a search.",
        "observe": "Advise on a model in production, from its own counters.",
    },
    "Deploy": {
        "export": "Write the best configuration for production.",
        "verify": "Verify a bundle against its recorded measurements.",
        "diff": "Show the differences between two exported bundles.",
        "serve": "Serve the best configuration, or an exported bundle.",
        "recommend": "Rank instance types by the cost of a fleet.",
        "plan": "Plan a fleet for a demand over time.",
        "prices": "List the prices of instances per hour.",
    },
    "Advanced": {
        "baseline": "Measure the published benchmark's eight configurations.",
        "record": "Measure every configuration of a space into a table.",
        "replay": "Search a recorded table without a server.",
        "cache": "List or prune the artefact cache.",
    },
}
"""Summaries of the commands by group; each command is in the module of its name."""

_SUMMARIES = {name: text for group in GROUPS.values() for name, text in group.items()}


class LazyGroup(click.Group):
    """Imports the module of a command when it is needed: all of them take two seconds."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.commands:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries of the commands by group."""
        width = max(map(len, _SUMMARIES))
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in group.items()])


@click.group(
    cls=LazyGroup,
    commands=[click.Command(name, short_help=text) for name, text in _SUMMARIES.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="optimizer")
def commands() -> None:
    """Find the cheapest way to serve a model on NVIDIA Triton within a latency limit."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code.

    0 done; 1 done, nothing met the limits; 2 a mistake in what was given; 3 the machine lacks
    something; 4 the run could not continue; 5 `verify` or `observe` found drift; 130 interrupted.
    """
    if arguments is None:
        hide_passwords()
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # Whatever the command: the servers that it starts execute the code of models.
    secrets = {name: os.environ.pop(name, None) for name in SECRET_VARIABLES}
    for number in _SIGNALS:
        # nohup has the hang-up signal ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    code = _exit_code(arguments, secrets)
    if arguments is None:
        # The interpreter would search for cycles as it ends: 0.7 s of processor time.
        gc.freeze()
    sys.exit(code)


def _exit_code(arguments: list[str] | None, secrets: Mapping[str, str | None] | None = None) -> int:
    try:
        result: Any = commands.main(
            arguments, prog_name="optimizer", standalone_mode=False, obj=secrets
        )
        return result if isinstance(result, int) else 0
    except Interrupted as signalled:
        _print_error(f"interrupted ({signalled}); rerun the command to resume")
        return INTERRUPTED
    except OSError as error:
        return _output_failed(error)
    except MemoryError:
        _print_error("error: memory ran out; make room, and rerun the command to resume")
        return RunError.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except OptimizerError as error:
        _print_error(f"error: {printable(str(error))}")
        return error.exit_code


def _print_error(text: str) -> None:
    """Print a message; a closed pipe is no further error."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _output_failed(error: OSError) -> int:
    """Return the exit code where the output could not be written; files have errors of ours."""
    closed = is_closed_output(error)
    if not closed and error.errno != errno.ENOSPC:
        raise error
    discard_output()
    if closed:
        return INTERRUPTED
    _print_error(f"error: cannot write the output: {error.strerror}")
    return StorageError.exit_code
