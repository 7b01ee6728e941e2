"""Every error this package raises on purpose.

    OptimizerError                 exit code 4 unless a branch below says otherwise
    ├── UsageError                 2   a mistake in what was given
    │   ├── SpaceFileError             the space file: every mistake at once, with key and line
    │   ├── SpaceChangedError          the study was started with another space or machine
    │   └── StudyBusyError             another process is running this study
    ├── RequirementError           3   the machine lacks something; the message says what to install
    ├── RunError                   4   the run could not go on
    │   ├── StorageError               results or study storage cannot be written (disk full, lost)
    │   │   └── DamagedStudyError          a study's own file cannot be used, and which
    │   └── EverythingFailedError      the circuit breaker: failures in a row, the baseline included
    └── TrialFailure               -   one configuration could not be measured: outcome `failed`
        ├── BuildFailure               an artefact could not be built
        ├── ContainerFailure           the container engine refused, or did not answer
        ├── ServerFailure              the server did not start, or died
        ├── ModelLoadFailure           the server refused or could not load the model
        │   └── EngineMismatch             a TensorRT engine of another GPU or TensorRT
        ├── ConfigMismatch             the server runs something else than it was asked to
        └── LoadTestFailure            requests failed, or the load client did

Foreign exceptions are turned into these where they enter: in the room of the library that raises
them.
"""

from __future__ import annotations

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
"""How CUDA, TensorRT, PyTorch, C++, Python and the kernel say that memory ran out."""


_SHOWN = 50
"""Mistakes of a file that a message lists; the rest it counts."""


def tells_of_memory(text: str) -> bool:
    """Whether a message says that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


class OptimizerError(Exception):
    """Base of all errors that are shown as one message, without a traceback."""

    exit_code = 4


class UsageError(OptimizerError):
    """A mistake in what the user gave."""

    exit_code = 2


@dataclass(frozen=True)
class Mistake:
    """One mistake in a space file: where it is, which rule it breaks, and the value found."""

    key: str
    rule: str
    value: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        got = f", got {self.value}" if self.value is not None else ""
        return f"{place}{self.key}: {self.rule}{got}"


class SpaceFileError(UsageError):
    """A space file that cannot be used; carries every mistake found."""

    def __init__(self, path: Path | str, mistakes: Sequence[Mistake]) -> None:
        self.path = path
        self.mistakes = tuple(sorted(mistakes, key=lambda m: (m.line or 0, m.key)))
        count = len(self.mistakes)
        title = f"{path}: {count} mistake{'s' if count != 1 else ''}"
        more = [f"  and {count - _SHOWN} more"] if count > _SHOWN else []
        super().__init__("\n".join([title, *(f"  {m}" for m in self.mistakes[:_SHOWN]), *more]))


class SpaceChangedError(UsageError):
    """A study is resumed with another space or on another machine."""


class StudyBusyError(UsageError):
    """Another process holds the study."""


class RequirementError(OptimizerError):
    """The machine lacks something that must be installed first.

    Attributes:
        lacks: what is not there, or not as it must be.
        remedy: what to do about it, the end of the message; None where `lacks` says all there is.
    """

    exit_code = 3

    def __init__(self, lacks: str, remedy: str | None = None):
        super().__init__(lacks if remedy is None else f"{lacks}: {remedy}")
        self.lacks = lacks
        self.remedy = remedy


class RunError(OptimizerError):
    """The run could not go on."""


class StorageError(RunError):
    """Results or study storage could not be written."""


class DamagedStudyError(StorageError):
    """A file that a study keeps of itself cannot be used."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"cannot read {path}: {reason}; put back a copy of the file, or begin another study "
            "with --study NEW"
        )


class EverythingFailedError(RunError):
    """Too many failures in a row, the baseline among them."""


class TrialFailure(OptimizerError):
    """One configuration could not be measured.

    Attributes:
        transient: whether the same configuration may succeed when tried again.
        out_of_memory: whether memory ran out, which bans every larger configuration too, and this
            one at once; told by the message where it is not given.
    """

    transient = False

    def __init__(
        self, message: str, *, transient: bool | None = None, out_of_memory: bool | None = None
    ):
        super().__init__(message)
        self.out_of_memory = tells_of_memory(message) if out_of_memory is None else out_of_memory
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
    """A TensorRT engine was built for another GPU, or with another TensorRT, than is there."""


class ConfigMismatch(TrialFailure):
    """The server runs something else than it was asked to."""


class LoadTestFailure(TrialFailure):
    """The load test could not give a figure."""

    transient = True


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised while writing below `path` into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        # Of a copy or a rename, the second file is the one that is written.
        where = error.filename2 or error.filename or path
        raise StorageError(f"cannot write {where}: {error.strerror or error}") from error
