"""The options of a command are the same on the command line, in its options class and in Python."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import tomllib
from pathlib import Path

import click
import pytest

import optimizer
from optimizer import commands
from optimizer.api import StudyOptions
from optimizer.cli import commands as command_line
from optimizer.commands.run_context import artifact_cache

PRINTING = {"verbosity", "print_only"}
"""Parameters of the command line that only choose what is printed."""

ANOTHER_FUNCTION = {"each_accelerator_type"}
"""Parameters that have another function called with the same options."""

PARTS = {"worker_resources"}
"""Parameters that are a part of the option `cluster`."""


def options_classes() -> dict[str, type]:
    """Every class *Options of a command, by the command's name: its module's, or begins it."""
    classes = {}
    for info in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"optimizer.commands.{info.name}")
        own = [
            value
            for name, value in vars(module).items()
            if name.endswith("Options")
            and inspect.isclass(value)
            and value.__module__ == module.__name__
        ]
        if own:
            [classes[info.name.removesuffix("_options")]] = own
    return classes


CLASSES = options_classes()
IN_PYTHON = [name for name in CLASSES if name in optimizer.__all__]


def command_of(name: str) -> click.Command:
    command = command_line.get_command(click.Context(command_line), name)
    assert command is not None
    return command


def test_there_are_options_classes_and_commands_in_python() -> None:
    assert {"run", "measure", "simulate"} <= set(IN_PYTHON)


@pytest.mark.parametrize("name", CLASSES)
def test_the_command_line_has_every_option_of_the_class_and_no_other(name: str) -> None:
    parameters = {parameter.name for parameter in command_of(name).params}
    # --launcher and what goes with it are one option `server`.
    if {"launcher", "image", "grpc", "http", "metrics", "repository"} <= parameters:
        parameters -= {"launcher", "image", "grpc", "http", "metrics", "repository"}
        parameters.add("server")
    own = parameters - PRINTING - ANOTHER_FUNCTION - PARTS
    assert own == {field.name for field in dataclasses.fields(CLASSES[name])}


@pytest.mark.parametrize("name", IN_PYTHON)
def test_a_function_has_every_option_of_its_command_with_the_same_default(name: str) -> None:
    function = inspect.signature(getattr(optimizer, name)).parameters
    fields = {field.name: field for field in dataclasses.fields(CLASSES[name])}
    assert set(function) - {"watch"} - PARTS == set(fields)
    for option, field in fields.items():
        if field.default is not dataclasses.MISSING:
            default = function[option].default
            assert (Path(default) if option == "results" else default) == field.default, option


def test_a_study_for_each_accelerator_takes_the_options_of_run_that_go_with_a_cluster() -> None:
    run, each = (
        inspect.signature(getattr(optimizer, name)).parameters
        for name in ("run", "run_each_accelerator_type")
    )
    of_this_machine = {"gpus", "slots", "max_disturbance_percent", "wait_for_quiet_seconds"}
    assert {*each, *StudyOptions.__annotations__} - {"options", "watch_study"} == (
        {*run} - {"watch"} - of_this_machine
    )


@pytest.mark.parametrize("name", CLASSES)
def test_the_command_line_has_the_defaults_of_the_class(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(CLASSES[name])}
    context = click.Context(command_of(name))
    for parameter in context.command.params:
        default = fields.get(str(parameter.name), dataclasses.MISSING)
        given = parameter.get_default(context)
        if default not in (dataclasses.MISSING, None, ()) and given is not None:
            assert parameter.process_value(context, given) == default, parameter.name


def test_the_cache_is_the_users_own_unless_a_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("OPTIMIZER_CACHE", raising=False)
    assert artifact_cache(None).root == Path("/xdg/triton-cost-optimizer")
    assert artifact_cache(Path("kept")).root == tmp_path / "kept"
    monkeypatch.setenv("OPTIMIZER_CACHE", "elsewhere")
    assert artifact_cache(None).root == tmp_path / "elsewhere"


def test_the_package_installs_the_command_under_two_names() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["scripts"] == {
        "optimizer": "optimizer.cli:main",
        "triton-cost-optimizer": "optimizer.cli:main",
    }
