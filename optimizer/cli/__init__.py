"""The command line: one file for each command, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from types import FrameType
from typing import Any

import click

from optimizer import __version__
from optimizer.cli.interruption import Interrupted
from optimizer.errors import OptimizerError, StorageError

INTERRUPTED = 130


def _interrupt(number: int, _: FrameType | None) -> None:
    # A second signal ends at once: the parts that are left running end with their parent.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(signal.Signals(number).name)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_COMMANDS: Mapping[str, str] = {
    "baseline": "Measure the eight configurations of the published benchmark.",
    "cache": "List what is stored for the next run, or remove some of it.",
    "compare": "Put studies side by side, all relative to the first.",
    "dashboard": "Show a study in a browser, on this machine alone.",
    "diff": "Say what changes from one exported bundle to another.",
    "doctor": "Say what this machine can run, and what to install.",
    "export": "Write a study's best configuration for production.",
    "init": "Write a commented space file.",
    "measure": "Measure one configuration, without a search.",
    "pareto": "Say what each latency limit costs, by a study.",
    "plan": "Plan a fleet for a demand over time, by studies.",
    "prices": "List what instances cost by the hour.",
    "recommend": "Rank instance types by what a fleet of each costs.",
    "record": "Measure every configuration of a space into a table.",
    "replay": "Search a recorded table, without a server.",
    "report": "Write what a study found as a page and as Markdown.",
    "run": "Search a space for the cheapest configuration, or go on.",
    "simulate": "Predict a configuration, by what a study has measured.",
    "status": "Say where studies stand.",
    "verify": "Hold an exported bundle against what was measured.",
}
"""Each is in the module of its name; what is said of it here is for the list of them all."""


class _LoadedWhenAsked(click.Group):
    """Imports the module of a command when it is asked for: all of them take two seconds."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, in place of the name and the few words that stand for it."""
        if cmd_name not in self.commands:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them by what stands for them."""
        rows = [(name, self.commands[name].short_help or "") for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=_LoadedWhenAsked,
    commands=[click.Command(name, short_help=text) for name, text in _COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="optimizer")
def commands() -> None:
    """Find the cheapest way to serve a model on NVIDIA Triton within a latency limit."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code.

    0 done; 1 done, nothing met the limits; 2 a mistake in what was given; 3 the machine lacks
    something; 4 the run could not go on; 5 `verify` found drift; 130 interrupted, resumable.
    """
    for number in _SIGNALS:
        # A hang-up that is ignored already was meant to be: nohup.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    try:
        result: Any = commands.main(arguments, prog_name="optimizer", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Interrupted as signalled:
        with contextlib.suppress(OSError):
            click.echo(f"interrupted ({signalled}); the same command goes on from here", err=True)
        return INTERRUPTED
    except OSError as error:
        return _output_failed(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OptimizerError as error:
        click.echo(f"error: {_printable(str(error))}", err=True)
        return error.exit_code


def _printable(message: str) -> str:
    """Return a message that may quote a stranger's file, without what a terminal would obey."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in message
    )


def _output_failed(error: OSError) -> int:
    """What is read and written turns its errors into ours; what is left is our own output."""
    gone = isinstance(error, BrokenPipeError) or error.errno == errno.EIO
    if not gone and error.errno != errno.ENOSPC:
        raise error
    # What Python still holds back must go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if gone:  # whoever read it; a terminal that was closed
        return INTERRUPTED
    click.echo(f"error: cannot write the output: {error.strerror}", err=True)
    return StorageError.exit_code
