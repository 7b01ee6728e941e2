"""Messages between `BuildProcess` and its child: a job, progress texts, and the reply."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from optimizer.artifacts.build_context import ReportProgress
from optimizer.artifacts.cache import ArtifactCache
from optimizer.errors import BuildFailure, OptimizerError, cause_text, innermost

_log = logging.getLogger(__name__)


_Value_co = TypeVar("_Value_co", covariant=True)


@dataclass(frozen=True)
class Job(Generic[_Value_co]):
    """Work for the child process, which can be pickled.

    Attributes:
        label: name in messages.
    """

    label: str
    work: Callable[[ArtifactCache, ReportProgress], _Value_co]


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, for people."""

    text: str


@dataclass(frozen=True)
class Reply:
    """Result of a job: its value or its error."""

    value: object = None
    error: OptimizerError | None = None


def answer(job: Job[object], cache: ArtifactCache, report_progress: ReportProgress) -> Reply:
    """Do one job. Tracebacks go to the log; a foreign error becomes a BuildFailure."""
    _log.info("%s: begin", job.label)
    try:
        value = job.work(cache, report_progress)
    except OptimizerError as error:
        _log.exception("%s", job.label)
        return Reply(error=error)
    except Exception as error:  # noqa: BLE001 - whatever a library raises costs one artefact only
        _log.exception("%s", job.label)
        cause = innermost(error)
        if isinstance(cause, OptimizerError):  # raised here, and wrapped by a library
            return Reply(error=cause)
        return Reply(error=BuildFailure(f"{job.label}: {cause_text(error)}"))
    _log.info("%s: done", job.label)
    return Reply(value)
