"""What the workshop and its child say to each other: a job one way, its reply the other.

Before the reply, the child may say how far it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from optimizer.artifacts.build_context import Tell
from optimizer.artifacts.cache import ArtifactCache
from optimizer.errors import BuildFailure, OptimizerError, cause_text, innermost

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Something to be done, which can be pickled.

    Attributes:
        label: names it in messages.
    """

    label: str
    work: Callable[[ArtifactCache, Tell], object]


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, in words."""

    text: str


@dataclass(frozen=True)
class Reply:
    """What came of a job: its value, or its error with all that this says of itself."""

    value: object = None
    error: OptimizerError | None = None


def answer(job: Job, cache: ArtifactCache, tell: Tell) -> Reply:
    """Do one job, and tell how far it is.

    Tracebacks stay in the log; a foreign error becomes a BuildFailure.
    """
    _log.info("%s: begin", job.label)
    try:
        value = job.work(cache, tell)
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
