"""Every command in README.md and docs/ is run, or is parsed and listed with the reason."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest

from optimizer.cli import main
from tests.docs import made_up
from tests.docs.blocks import LANGUAGES, ROOT, Command, blocks, commands, inline_commands, prose
from tests.docs.how_checked import PARSED_ONLY, at_once, on_a_server
from tests.docs.parsing import check, command_of, parse

COMMANDS = commands()
SECONDS_LONG = ("doctor", "plan", "replay")


AT_ONCE = [
    pytest.param(c, id=str(c), marks=[pytest.mark.slow] if command_of(c) in SECONDS_LONG else [])
    for c in COMMANDS
    if at_once(c)
]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_valid_and_checked(command: Command) -> None:
    check(command)
    if command_of(command) is not None:
        checks = at_once(command), on_a_server(command), str(command) in PARSED_ONLY
        assert sum(checks) == 1, f"{command.place}: in no list, or in several"


@pytest.mark.parametrize("command", list(inline_commands()), ids=str)
def test_a_command_within_a_sentence_is_valid(command: Command) -> None:
    if len(command.words) > 3:
        check(command)


def test_a_mistyped_option_and_an_unknown_command_are_found() -> None:
    for arguments in (["run", "space.yaml", "--trails", "3"], ["rnu"], ["run", "--trials", "none"]):
        with pytest.raises(click.UsageError):
            parse(arguments)


def test_what_is_only_parsed_is_still_documented() -> None:
    assert set(PARSED_ONLY) <= {str(command) for command in COMMANDS}


def test_all_code_is_fenced_and_of_a_known_kind() -> None:
    assert {block.language for block in blocks()} <= set(LANGUAGES)
    for place, text in prose():
        assert "```" not in text, place
        assert not re.search(r"\n\n {4}\S", text), place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "here"
    made_up.fill(folder)
    return folder


@pytest.mark.parametrize("command", AT_ONCE)
def test_a_command_without_a_server_runs(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("OPTIMIZER_CACHE", str(folder / "cache"))
    if command_of(command) == "doctor":  # its probes leave sockets open
        _run_apart(command, folder)
        return
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as ended:
        main(list(command.words[3:]))
    assert ended.value.code == 0, output.getvalue()
    assert output.getvalue() != ""


def _run_apart(command: Command, folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, *command.words[1:]], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert ran.returncode in (0, 3), ran.stderr
    assert ran.stdout != ""
