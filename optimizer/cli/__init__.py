"""The command line: one file for each command, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from optimizer import __version__
from optimizer.cli.baseline import baseline
from optimizer.cli.cache import cache
from optimizer.cli.compare import compare
from optimizer.cli.dashboard import dashboard
from optimizer.cli.diff import diff
from optimizer.cli.doctor import doctor
from optimizer.cli.export import export
from optimizer.cli.init import init
from optimizer.cli.interruption import Interrupted
from optimizer.cli.measure import measure
from optimizer.cli.pareto import pareto
from optimizer.cli.plan import plan
from optimizer.cli.prices import prices
from optimizer.cli.recommend import recommend
from optimizer.cli.record import record
from optimizer.cli.replay import replay
from optimizer.cli.report import report
from optimizer.cli.run import run
from optimizer.cli.simulate import simulate
from optimizer.cli.status import status
from optimizer.cli.verify import verify
from optimizer.errors import OptimizerError, StorageError

INTERRUPTED = 130


def _interrupt(number: int, _: FrameType | None) -> None:
    # A second signal ends at once: the parts that are left running end with their parent.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(signal.Signals(number).name)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="optimizer")
def commands() -> None:
    """Find the cheapest way to serve a model on NVIDIA Triton within a latency limit."""


commands.add_command(run)
commands.add_command(status)
commands.add_command(dashboard)
commands.add_command(measure)
commands.add_command(baseline)
commands.add_command(record)
commands.add_command(replay)
commands.add_command(report)
commands.add_command(simulate)
commands.add_command(pareto)
commands.add_command(compare)
commands.add_command(export)
commands.add_command(verify)
commands.add_command(diff)
commands.add_command(plan)
commands.add_command(recommend)
commands.add_command(init)
commands.add_command(prices)
commands.add_command(doctor)
commands.add_command(cache)


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
        click.echo(f"error: {error}", err=True)
        return error.exit_code


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
