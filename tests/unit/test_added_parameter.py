"""A parameter of Triton's config.pbtxt is one entry of the table, and all else follows from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optimizer.configuration.named_parameters import names_of
from optimizer.configuration.parameters import PARAMETERS

ROOT = Path(__file__).parents[2]
ENTRY = """
    config_field(
        "fake_pinned_memory",
        "optimization.input_pinned_memory.enable",
        Allowed(switch=True),
        default=True,
        description="a parameter that only this test has",
    ),
"""
END = ')\n"""In the order of points'


def with_entry(entry: str, into: Path) -> Path:
    """A copy of the package whose table of parameters has one more entry, and nothing else."""
    shutil.copytree(ROOT / "optimizer", into / "optimizer")
    for folder in ("model_repository_templates", "search_spaces", "tests"):
        (into / folder).symlink_to(ROOT / folder)
    table = into / "optimizer" / "configuration" / "parameters.py"
    text = table.read_text()
    assert text.count(END) == 1
    table.write_text(text.replace(END, entry.lstrip("\n") + END))
    return into


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    package = with_entry(ENTRY, tmp_path_factory.mktemp("package"))
    results = tmp_path_factory.mktemp("results")
    ran = python(package, "-m", "tests.unit.added_parameter", str(results))
    assert ran.returncode == 0, ran.stderr
    found: Mapping[str, Any] = json.loads(ran.stdout)
    assert found["package"] == str(package)
    return found


def test_it_is_in_the_schema(shown: Mapping[str, Any]) -> None:
    schema = shown["schema"]
    assert schema["description"] == "a parameter that only this test has"
    assert schema["default"] == [True]
    assert schema["anyOf"][0] == {"type": "boolean"}


def test_the_baseline_has_its_default_and_is_the_configuration_of_before(
    shown: Mapping[str, Any],
) -> None:
    assert shown["baseline"] == []
    assert shown["same as without"]


def test_a_command_can_set_it(shown: Mapping[str, Any]) -> None:
    assert shown["set"] == [["optimization.input_pinned_memory.enable", "false"]]


def test_it_is_searched_recorded_and_read_back_on_resume(shown: Mapping[str, Any]) -> None:
    search = shown["search"]
    assert search["measured"] == 4
    assert search["positions"] == [0, 1, 2, 3]
    assert search["proposed"] == ["0", "0", "1", "1"]


def test_it_is_shown_in_tables_and_descriptions(shown: Mapping[str, Any]) -> None:
    assert shown["search"]["column"] == ["False", "False", "True", "True"]
    assert "optimization.input_pinned_memory.enable false" in shown["search"]["described"]


def test_it_is_exported_with_its_comment(shown: Mapping[str, Any]) -> None:
    assert (
        "# parameter fake_pinned_memory: searched among True, False\n"
        "optimization {\n  input_pinned_memory {\n  }\n}\n"
    ) in shown["search"]["exported"]


def test_a_server_that_does_otherwise_is_noticed(shown: Mapping[str, Any]) -> None:
    line = "optimization.input_pinned_memory.enable: requested False, the server runs True"
    assert line in shown["search"]["differences"]


def test_the_surrogate_and_the_simulator_tell_its_values_apart(shown: Mapping[str, Any]) -> None:
    assert shown["features"] == {
        "points": 2,
        "layouts": 2,
        "categorical": [True],
        "simulated": 2,
    }


def test_a_study_that_was_begun_before_it_still_loads(shown: Mapping[str, Any]) -> None:
    assert shown["older"] == {"stored": False, "same": True, "content": [True]}


def test_a_parameter_of_the_queue_that_the_simulator_ignores_is_refused(tmp_path: Path) -> None:
    queue = ENTRY.replace('test has",\n', 'test has",\n        part="queue",\n')
    ran = python(with_entry(queue, tmp_path), "-c", "import optimizer.simulator.execution_layout")
    assert ran.returncode == 1
    assert "ignores ['fake_pinned_memory']: simulate them" in ran.stderr


def test_every_entry_has_a_part_and_another_name_and_key() -> None:
    names = [each.name for each in PARAMETERS]
    assert names == [*names_of("artifact", "layout", "batcher", "queue", "server")]
    assert len({*names, *(each.key for each in PARAMETERS if each.key)}) == len(names) + 2
