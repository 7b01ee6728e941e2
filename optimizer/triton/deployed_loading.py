"""Load a model of an existing repository as it is, on a server that completes configurations."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import model_config_pb2

from optimizer.triton.client_errors import UnexplainedLoadFailure
from optimizer.triton.launcher import RunningServer, last_errors
from optimizer.triton.repository import ModelRepository

_LOAD_SECONDS = 120.0


def loaded_as_it_is(
    name: str, folder: Path, server: RunningServer, repository: ModelRepository
) -> model_config_pb2.ModelConfig:
    """Load a model with the configuration of its own, and return what the server made of it.

    Args:
        name: that the server has it under.
        folder: of the model.
        repository: the server's own.

    Raises:
        UsageError: where the configuration is none.
        TrialFailure: where the server cannot load it, with what the server's log says.
    """
    repository.write_deployed(name, folder)
    try:
        return server.control.load_as_it_is(name, _LOAD_SECONDS)
    except UnexplainedLoadFailure as error:
        reason = last_errors(server.log_since_start())
        raise UnexplainedLoadFailure(f"{error}; {reason}") from error
