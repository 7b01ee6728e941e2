"""Standard output whose reader goes away, through a real pipe."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import sys
from optimizer.cli.output import ResilientConsole, OutputConsole

console = {console}()
console.print("read")
sys.stdin.readline()
for _ in range(3):
    console.print("read by nobody")
sys.stderr.write("it went on")
"""


def ended(console: str) -> tuple[int, str]:
    """How a program ends whose reader leaves after the first line, and its errors."""
    reading, writing = os.pipe()
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(console=console)],
        stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert os.read(reading, 10) == b"read\n"
    os.close(reading)
    _, errors = program.communicate("\n")
    return program.returncode, errors


def test_a_search_goes_on_without_a_reader_and_without_a_word() -> None:
    assert ended("ResilientConsole") == (0, "it went on")


def test_any_other_command_is_told() -> None:
    code, errors = ended("OutputConsole")
    assert code != 0
    assert "BrokenPipeError: output pipe closed" in errors


def test_a_command_that_nobody_listens_to_ends_quietly_with_130() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = subprocess.Popen(
        [sys.executable, "-m", "optimizer", "prices"], stdout=writing, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(writing)
    _, errors = program.communicate()
    assert (program.returncode, errors) == (130, "")


def test_an_error_that_nobody_reads_leaves_no_trace() -> None:
    """As in `optimizer status none 2>&1 | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    program = subprocess.Popen(
        [sys.executable, "-m", "optimizer", "status", "none"], stdout=writing, stderr=writing
    )
    os.close(writing)
    assert program.wait(60) == 2
