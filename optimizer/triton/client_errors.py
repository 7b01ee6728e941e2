"""Errors of Triton's client library as failures of this program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.utils import InferenceServerException

from optimizer.errors import ModelLoadFailure, ServerFailure


class UnexplainedLoadFailure(ModelLoadFailure):
    """The server did not load a model, and only its log says why."""


@contextmanager
def server_errors(doing: str) -> Iterator[None]:
    """Convert the client's errors.

    Args:
        doing: completes "cannot ...".

    Raises:
        ServerFailure: where the client library raised an error.
    """
    try:
        yield
    except InferenceServerException as error:
        raise ServerFailure(f"cannot {doing}: {message_of(error)}") from error


def load_failure(
    model: str, error: InferenceServerException, timeout_seconds: float
) -> ModelLoadFailure | ServerFailure:
    """Return the failure that an error during a load stands for."""
    status = str(error.status() or "")
    if "UNAVAILABLE" in status:
        return ServerFailure(f"the server was lost while it loaded {model}: {message_of(error)}")
    if "DEADLINE_EXCEEDED" in status:
        late = f"{model} was not loaded within {timeout_seconds:g} s"
        return UnexplainedLoadFailure(late, transient=True)
    message = message_of(error)
    # Triton's reply for every config.pbtxt that is wrong.
    kind = UnexplainedLoadFailure if "failed to poll" in message else ModelLoadFailure
    return kind(f"the server could not load {model}: {message}")


def message_of(error: Exception) -> str:
    """Return the text of an error in one line."""
    text = error.message() if isinstance(error, InferenceServerException) else error
    return " ".join(str(text).split())
