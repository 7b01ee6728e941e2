from __future__ import annotations

import errno
import inspect
import pickle
import re
from pathlib import Path

import pytest

from optimizer import errors
from optimizer.errors import (
    BuildFailure,
    ConfigMismatch,
    EverythingFailedError,
    LoadTestFailure,
    Mistake,
    ModelLoadFailure,
    OptimizerError,
    RequirementError,
    RunError,
    ServerFailure,
    SpaceChangedError,
    SpaceFileError,
    StorageError,
    StudyBusyError,
    TrialFailure,
    UsageError,
    cause_text,
    innermost,
    storage_errors,
)

BRANCH = re.compile(r"^ {4}(?P<edges>[ │├└─]*)(?P<name>[A-Z]\w+) +(?P<code>exit code \d|\d|-)?")


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Name of each drawn class -> name of the class that it hangs from, and its exit code."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := BRANCH.match(line):
            depth = len(found["edges"])
            path = [(d, name) for d, name in path if d < depth]
            tree[found["name"]] = (path[-1][1] if path else None, found["code"])
            path.append((depth, found["name"]))
    return tree


def defined_classes() -> dict[str, type[Exception]]:
    return {
        name: cls
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == errors.__name__
    }


def test_the_drawn_tree_is_the_tree_of_classes() -> None:
    drawn = {name: parent for name, (parent, _) in drawn_tree().items()}
    defined = {name: cls.__bases__[0].__name__ for name, cls in defined_classes().items()}
    assert drawn == {**defined, "OptimizerError": None}


def test_every_class_has_the_exit_code_drawn_at_its_branch() -> None:
    tree = drawn_tree()
    for name, cls in defined_classes().items():
        assert issubclass(cls, OptimizerError)
        branch: str | None = name
        while branch and (tree[branch][1] or "-") == "-":
            branch = tree[branch][0]
        assert branch
        assert cls.exit_code == int((tree[branch][1] or "")[-1]), name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (SpaceFileError("space.yaml", []), 2),
        (SpaceChangedError("x"), 2),
        (StudyBusyError("x"), 2),
        (RequirementError("x"), 3),
        (RunError("x"), 4),
        (StorageError("x"), 4),
        (EverythingFailedError("x"), 4),
        (OptimizerError("x"), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_exit_codes(error: OptimizerError, code: int) -> None:
    assert error.exit_code == code


def test_a_requirement_ends_with_its_remedy() -> None:
    error = RequirementError("x is not installed", "pip install x")
    assert str(error) == "x is not installed: pip install x"
    assert (error.lacks, error.remedy) == ("x is not installed", "pip install x")
    alone = RequirementError("x cannot be had")
    assert (str(alone), alone.remedy) == ("x cannot be had", None)


def test_a_mistake_names_line_key_rule_and_value() -> None:
    mistake = Mistake("limit.latency_ms", "must be above 0", value="-1", line=7)
    assert str(mistake) == "line 7: limit.latency_ms: must be above 0, got -1"
    assert str(Mistake("models", "is required")) == "models: is required"


def test_mistakes_are_listed_in_the_order_of_the_file() -> None:
    error = SpaceFileError(
        Path("space.yaml"),
        [Mistake("b", "is unknown", line=9), Mistake("a", "is unknown", line=2)],
    )
    assert str(error) == (
        "space.yaml: 2 mistakes\n  line 2: a: is unknown\n  line 9: b: is unknown"
    )
    assert [mistake.key for mistake in error.mistakes] == ["a", "b"]


def test_one_mistake_is_not_plural() -> None:
    error = SpaceFileError("space.yaml", [Mistake("a", "is unknown")])
    assert str(error).startswith("space.yaml: 1 mistake\n")


@pytest.mark.parametrize(
    ("kind", "transient"),
    [
        (BuildFailure, False),
        (ModelLoadFailure, False),
        (ConfigMismatch, False),
        (ServerFailure, True),
        (LoadTestFailure, True),
    ],
)
def test_a_failure_is_transient_by_its_kind_unless_said(
    kind: type[TrialFailure], transient: bool
) -> None:
    assert kind("x").transient is transient
    assert kind("x", transient=not transient).transient is not transient
    assert kind.transient is transient
    assert not kind("x").out_of_memory


def test_a_failure_crosses_a_process_boundary_whole() -> None:
    failure = pickle.loads(pickle.dumps(BuildFailure("x", transient=True, out_of_memory=True)))
    assert isinstance(failure, BuildFailure)
    assert (str(failure), failure.transient, failure.out_of_memory) == ("x", True, True)


def test_os_errors_become_storage_errors_that_name_the_file() -> None:
    with pytest.raises(StorageError) as caught, storage_errors(Path("results/x")):
        raise OSError(errno.ENOSPC, "No space left on device", "results/x/trials/3.json")
    assert str(caught.value) == "cannot write results/x/trials/3.json: No space left on device"
    assert isinstance(caught.value.__cause__, OSError)


def test_os_errors_without_a_file_name_the_folder() -> None:
    with (
        pytest.raises(StorageError, match=r"^cannot write results/x: quota$"),
        storage_errors(Path("results/x")),
    ):
        raise OSError("quota")


def test_other_errors_pass_through_storage_errors() -> None:
    with pytest.raises(ValueError, match="mine"), storage_errors(Path("results")):
        raise ValueError("mine")


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "std::bad_alloc",
        "[E] Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
        "tactic device request: insufficient memory on requested size",
        "MemoryError: ",
    ],
)
def test_what_ran_out_of_memory_is_known_by_its_message_and_not_tried_again(message: str) -> None:
    failure = LoadTestFailure(f"every request failed: {message}")
    assert failure.out_of_memory
    assert not failure.transient


def test_other_failures_are_what_their_kind_is() -> None:
    assert LoadTestFailure("every request failed: the runtime broke down").transient
    assert not LoadTestFailure("no reply in time").out_of_memory
    assert ServerFailure("out of memory", transient=True).transient
    assert not BuildFailure("out of memory", out_of_memory=False).out_of_memory


def chained() -> Exception:
    try:
        try:
            raise ValueError("\x1b[96mCannot view a tensor\x1b[0m\nlong explanation")
        except ValueError as error:
            raise RuntimeError("this is step 2/3") from error
    except RuntimeError as error:
        return error


def test_the_innermost_cause_is_told_in_one_line() -> None:
    assert cause_text(chained()) == "ValueError: Cannot view a tensor"
    assert cause_text(MemoryError()) == "MemoryError: no reason given"
    nested = "Exception from src/core.cpp:84:\nException from src/node.cpp:7:\nrank must be static"
    assert cause_text(RuntimeError(nested)) == "RuntimeError: rank must be static"
    assert innermost(alone := KeyError("x")) is alone
