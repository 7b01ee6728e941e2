"""Checks of commands without running them: by the optimizer's parser and the repository's files."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping

import click
from packaging.requirements import Requirement

from optimizer.cli import commands as optimizer_commands
from tests.docs.blocks import ROOT, Command

OPTIMIZER = ("python", "-m", "optimizer")


def command_of(command: Command) -> str | None:
    """Return the name of the optimizer's command, None for another tool."""
    return command.words[3] if command.words[:3] == OPTIMIZER else None


def parse(arguments: list[str]) -> None:
    """Parse arguments.

    Raises:
        click.UsageError: for an invalid argument or option.
    """
    parsed: click.Command = optimizer_commands
    # click creates a command's help option once, with the names of the first context.
    settings = optimizer_commands.context_settings
    context, rest = click.Context(optimizer_commands, info_name="optimizer", **settings), arguments
    while isinstance(parsed, click.Group) and rest and not rest[0].startswith("-"):
        _, chosen, rest = parsed.resolve_command(context, rest)
        assert chosen is not None
        parsed = chosen
    try:
        parsed.make_context(parsed.name, rest, parent=context)
    except click.exceptions.Exit:
        assert {"--help", "-h", "--version"} & set(arguments)


def check(command: Command) -> None:
    """Check a command without running it; an assertion fails where it is wrong."""
    words = list(command.words)
    if command_of(command) is not None:
        parse(words[3:])
        return
    tool = next((check for start, check in _TOOLS.items() if words[: len(start)] == [*start]), None)
    assert tool is not None, f"{command.place}: {command} has no check in _TOOLS"
    tool(words)


def _make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"no target {words[1]}"
    for setting in words[2:]:
        name, _, value = setting.partition("=")
        assert name == "ARGS"
        parse([words[1], *shlex.split(value)])


def _pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rest = iter(words[2:])
    for word in rest:
        if word == "-c":
            assert (ROOT / next(rest)).exists()
        elif word == "-e":
            extras = next(rest).removeprefix(".[").removesuffix("]").split(",")
            assert set(extras) <= set(project["optional-dependencies"])
        else:
            assert Requirement(word).name in {
                Requirement(each).name for each in project["optional-dependencies"]["embedded"]
            }


def _docker(words: list[str]) -> None:
    dockerfile = (ROOT / "search_spaces" / "bert_large.Dockerfile").read_text()
    if words[1] == "pull":
        assert f"FROM {words[2]}\n" in dockerfile
        return
    build, flag, tag, *from_here = words[1:]
    assert (build, flag, from_here[:2]) == ("build", "-t", ["-", "<"])
    assert (ROOT / from_here[2]).read_text() == dockerfile
    assert f"image: {tag}\n" in (ROOT / "search_spaces" / "bert_large.yaml").read_text()


def _benchmark(words: list[str]) -> None:
    assert len(words) == 3
    assert importlib.util.find_spec(words[2]) is not None


def _file(words: list[str]) -> None:
    """Check that the command names a file of this repository."""
    assert any((ROOT / word).is_file() for word in words)


def _as_it_is(*_: object) -> None:
    """Accept a command that names nothing of this repository."""


_TOOLS: Mapping[tuple[str, ...], Callable[[list[str]], None]] = {
    (".", ".venv/bin/activate"): _as_it_is,
    ("cd", "triton-cost-optimizer"): _as_it_is,
    ("git", "clone", "URL", "triton-cost-optimizer"): _as_it_is,
    ("cd", "models", "&&", "git", "apply", "../patch/repository.patch"): _as_it_is,
    ("apt-get", "install", "libpython3.11"): _as_it_is,
    ("docker",): _docker,
    ("kubectl", "apply", "-f"): _file,
    ("ray", "start"): _as_it_is,
    ("sbatch",): _file,
    ("make",): _make,
    (".venv/bin/pip", "install"): _pip,
    ("pip", "install"): _pip,
    ("python", "-m"): _benchmark,
    ("python3", "-m", "venv", ".venv"): _as_it_is,
}
