"""Every error this package raises on purpose.

    OptimizerError                 exit code 4 unless a branch below says otherwise
    ├── UsageError                 2   a mistake in what was given
    │   ├── SpaceFileError             the space file: every mistake at once, with key and line
    │   ├── SpaceChangedError          the study was started with another space or machine
    │   ├── NoBatchAxis                the model can be served, but not in batches
    │   ├── ChangedRequestsError       the file of a workload's requests is gone or has changed
    │   └── StudyBusyError             another process is running this study
    ├── RequirementError           3   the machine lacks something; the message says what to install
    ├── RunError                   4   the run could not continue
    │   ├── StorageError               results or study storage cannot be written (disk full, lost)
    │   │   └── DamagedStudyError          a study's own file cannot be used, and which
    │   ├── EverythingFailedError      the circuit breaker: failures in a row, the baseline included
    │   ├── WorkersLostError           no worker is left; the study can be resumed
    │   └── TimeIsUpError              the time of the run ended first; the study can be resumed
    └── TrialFailure               -   one configuration could not be measured: outcome `failed`
        ├── BuildFailure               an artefact could not be built
        ├── ContainerFailure           the container engine refused, or did not answer
        ├── ServerFailure              the server did not start, or died
        ├── ModelLoadFailure           the server refused or could not load the model
        │   └── EngineMismatch             a TensorRT engine of another GPU or TensorRT
        ├── ConfigMismatch             the server runs another configuration than it was given
        └── LoadTestFailure            requests failed, or the load generator did
            └── VoidLevelFailure           a load level that says nothing about the server

Exceptions of a library are turned into these by the package that uses the library.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_OUT_OF_MEMORY = re.compile(
    r"out.?of.?memory|want of memory|bad_alloc|cannot allocate memory|MemoryError"
    r"|insufficient (?:gpu |device )?memory|requested amount of gpu memory",
    re.IGNORECASE,
)
"""Messages of CUDA, TensorRT, PyTorch, C++, Python and the kernel about memory that ran out."""


_SHOWN = 50
"""Mistakes of a file that a message lists; the others are counted."""

_SOURCE_LINES = re.compile(r"\A(?:Exception from \S+:\d+:\s*\n)+")
_TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error says that the disk, or what this user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def innermost(error: BaseException) -> BaseException:
    """Return the last of an error's causes, or the error itself where it has none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def cause_text(error: BaseException) -> str:
    """Return the type and the first line of the innermost cause of an error.

    Libraries wrap the cause in errors of their own, which only name the step that failed, and
    OpenVINO begins with lines that only name its source files.
    """
    cause = innermost(error)
    text = _SOURCE_LINES.sub("", _TERMINAL_COLOURS.sub("", str(cause)).strip())
    lines = text.splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"


def is_out_of_memory(text: str) -> bool:
    """Return whether a message says that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


class OptimizerError(Exception):
    """Base of all errors that are shown as one message, without a traceback."""

    exit_code = 4


class UsageError(OptimizerError):
    """A mistake in what the user gave."""

    exit_code = 2


@dataclass(frozen=True)
class Mistake:
    """One mistake in a space file: its key and line, the rule, and the value."""

    key: str
    rule: str
    value: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        line = f"line {self.line}: " if self.line is not None else ""
        value = f", got {self.value}" if self.value is not None else ""
        return f"{line}{self.key}: {self.rule}{value}"


class SpaceFileError(UsageError):
    """A space file cannot be used; the error has every mistake."""

    def __init__(self, path: Path | str, mistakes: Sequence[Mistake]) -> None:
        self.path = path
        self.mistakes = tuple(sorted(mistakes, key=lambda m: (m.line or 0, m.key)))
        count = len(self.mistakes)
        title = f"{path}: {count} mistake{'s' if count != 1 else ''}"
        more = [f"  and {count - _SHOWN} more"] if count > _SHOWN else []
        super().__init__("\n".join([title, *(f"  {m}" for m in self.mistakes[:_SHOWN]), *more]))


class SpaceChangedError(UsageError):
    """A study is resumed with another space file or on another machine."""


class NoBatchAxis(UsageError):
    """A model can only be served without batches; the message gives the reason."""


class ChangedRequestsError(UsageError):
    """The file of a workload's requests is gone, or has changed since it was measured."""


class StudyBusyError(UsageError):
    """Another process is running the study."""


class RequirementError(OptimizerError):
    """The machine lacks something that must be installed first.

    Attributes:
        lacks: what is missing, or not as it must be.
        remedy: what to do about it, the end of the message; None where `lacks` includes it.
    """

    exit_code = 3

    def __init__(self, lacks: str, remedy: str | None = None):
        super().__init__(lacks if remedy is None else f"{lacks}: {remedy}")
        self.lacks = lacks
        self.remedy = remedy


class RunError(OptimizerError):
    """The run could not continue."""


class StorageError(RunError):
    """Results or study storage could not be written."""


class DamagedStudyError(StorageError):
    """A file of a study cannot be used."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"cannot read {path}: {reason}; restore the file from a copy, or start another study "
            "with --study NEW"
        )


class EverythingFailedError(RunError):
    """Too many trials in a row failed, the baseline among them, or most could not be measured."""


class WorkersLostError(RunError):
    """No worker of the run is left; the study can be resumed."""


class TimeIsUpError(RunError):
    """The time of the run ended before its search could begin; the study can be resumed."""

    def __init__(self, message: str = "the time is up"):
        super().__init__(message)


class TrialFailure(OptimizerError):
    """One configuration could not be measured.

    Attributes:
        transient: whether the same configuration may succeed when it is tried again.
        out_of_memory: whether memory ran out, which excludes this and every larger configuration;
            by default the message decides.
    """

    transient = False

    def __init__(
        self, message: str, *, transient: bool | None = None, out_of_memory: bool | None = None
    ):
        super().__init__(message)
        self.out_of_memory = is_out_of_memory(message) if out_of_memory is None else out_of_memory
        if transient is not None:
            self.transient = transient
        elif self.out_of_memory:
            self.transient = False


class BuildFailure(TrialFailure):
    """An artefact could not be built."""


class ContainerFailure(TrialFailure):
    """The container engine refused, or did not answer."""

    transient = True


class ServerFailure(TrialFailure):
    """The server did not start, or died."""

    transient = True


class ModelLoadFailure(TrialFailure):
    """The server could not load a model."""


class EngineMismatch(ModelLoadFailure):
    """A TensorRT engine was built for another GPU, or with another TensorRT version."""


class ConfigMismatch(TrialFailure):
    """The server runs another configuration than the requested one."""


class LoadTestFailure(TrialFailure):
    """The load test gave no result."""

    transient = True


class VoidLevelFailure(LoadTestFailure):
    """The configuration could not be measured: its load levels say nothing about the server."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised while writing below `path` into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        # A copy or a rename writes its second file.
        file = error.filename2 or error.filename or path
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error
