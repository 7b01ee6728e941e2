"""Damaged files of every kind: one message and the right exit code, whatever they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.sampling import ALL_CASES
from tests.unit.fuzzing import KINDS, Kind, damaged, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COUNT = int(os.environ.get("FUZZ_CASES", "500" if ALL_CASES else "75"))
"""Damaged files of each kind; more of them begin with the same ones."""
SEED = 8
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _run(kind: str) -> list[dict[str, Any]]:
    """What the reader of a kind made of its files, see `tests.unit.fuzzing`."""
    command = [sys.executable, "-m", "tests.unit.fuzzing", kind, str(COUNT), str(SEED)]
    ran = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def found() -> Mapping[str, list[dict[str, Any]]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(KINDS, pool.map(_run, KINDS), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_file_breaks_its_reader(
    kind: str, found: Mapping[str, list[dict[str, Any]]]
) -> None:
    *broken, codes = found[kind]
    assert broken == []
    assert sum(codes.values()) == COUNT
    refused = COUNT - codes.get("0", 0)
    assert refused > COUNT / 5, f"the files are hardly damaged: {codes}"


ON_THE_COMMAND_LINE = {
    "space": ["measure", "{file}"],
    "table": ["replay", "{file}", "--trials", "1", "--sampler", "random"],
    "users": ["measure", "{space}", "--users", "{file}"],
    "demand": ["plan", "one", "--results", "{results}", "--trace", "{file}"],
    "bundle": ["diff", "{folder}", "{folder}"],
    "study": ["report", "one", "--results", "{results}"],
}
"""A command that reads a file of each kind and, where that is refused, starts nothing."""


@pytest.mark.parametrize("kind", ON_THE_COMMAND_LINE)
def test_the_command_line_says_one_thing_of_a_damaged_file(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = KINDS[kind](folder)
        for number in _refused(made, 3):
            path, content = damaged(made, number, SEED)
            whole = path.read_bytes()
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            _assert_one_message(kind, path, folder)
            path.write_bytes(whole)


def _refused(kind: Kind, count: int) -> list[int]:
    """Numbers of cases that the reader refuses."""
    numbers = []
    for number in range(100):
        path, content = damaged(kind, number, SEED)
        whole = path.read_bytes()
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        if outcome(kind, path)[0] != 0:
            numbers.append(number)
        path.write_bytes(whole)
        if len(numbers) == count:
            break
    return numbers


def _assert_one_message(kind: str, path: Path, folder: Path) -> None:
    places = {"file": path, "folder": path.parent, "results": folder / "results"}
    space = ROOT / "search_spaces" / "quickstart.yaml"
    words = [word.format(**places, space=space) for word in ON_THE_COMMAND_LINE[kind]]
    ran = subprocess.run(
        [sys.executable, "-m", "optimizer", *words], cwd=folder, env=ENVIRONMENT,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode in (2, 4), (words, ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("error: ")
