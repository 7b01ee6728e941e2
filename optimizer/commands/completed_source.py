"""Ask a server for what the configuration of a deployed model leaves out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optimizer.commands.hosts import Needs, launch_with, require_server
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import Host, RemoteHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import RequirementError, TrialFailure, UsageError
from optimizer.files.untrusted import is_safe_name
from optimizer.machine.slots import Slot, local_slot
from optimizer.study.directory import StudyDirectory
from optimizer.triton.completed_config import completed_text, left_out
from optimizer.triton.control import UnexplainedLoadFailure
from optimizer.triton.deployed_config import CONFIG_FILE, backend_of, read_if_present, refusal_of
from optimizer.triton.launcher import last_errors
from optimizer.workload.model_spec import RepositorySource

_LOAD_SECONDS = 120.0
_REMEDY = (
    "write a complete one; GET v2/models/MODEL/config of a server that has loaded the model "
    "returns it"
)


def complete_source(
    model: str, source: RepositorySource, host: Host, gpus: tuple[Gpu, ...]
) -> RepositorySource:
    """Return a source with a complete configuration, from a server where the file leaves it out.

    Args:
        model: name that it is served under where its own does not serve: a remote server's
            repository may have a model of that name, and Triton starts Python models by a shell.
        host: where the server is started; nothing is left running.
        gpus: of the server.

    Raises:
        UsageError: when the file is no configuration, or the server does not complete it either.
        RequirementError: when no server could be asked, with the reason.
    """
    text, config = read_if_present(source.folder)
    missing = left_out(text)
    if not missing or refusal_of(config) is not None:
        return source
    # The name may tell the backend: NAME.BACKEND.
    own = is_safe_name(source.model) and not isinstance(host, RemoteHost)
    name, backend = source.model if own else model, backend_of(config)
    slot = local_slot(tuple(gpu.uuid for gpu in gpus))
    try:
        require_server(host, Needs((name,), (), (backend,) if backend else ()), slot)
        completed = _completed(text, name, source, host, slot)
    except (RequirementError, TrialFailure) as error:
        lacks = f"{_rule(source, missing)}, and the server could not complete it ({error})"
        raise RequirementError(lacks, _REMEDY) from error
    still = [name for name in left_out(completed) if name != "max_batch_size"]
    if still:
        rule = f"{_rule(source, missing)}, and the server does not complete {', '.join(still)}"
        raise UsageError(f"{rule}: {_REMEDY}")
    return replace(source, completed=completed)


def _rule(source: RepositorySource, missing: Sequence[str]) -> str:
    path = source.folder / CONFIG_FILE
    return f"{path} leaves out {', '.join(missing)}" if path.exists() else f"{path} is missing"


def _completed(text: str, model: str, source: RepositorySource, host: Host, slot: Slot) -> str:
    """Return the text of a configuration as a server completes it. Raises TrialFailure."""
    with tempfile.TemporaryDirectory(prefix="optimizer-") as folder:
        # Only these two folders are visible in a container.
        directory = StudyDirectory(Path(folder))
        launcher, repository = launch_with(host, directory, source.folder)
        repository.write_deployed(model, source.folder)
        server = launcher.start(ServerOptions(), slot, completes=True)
        try:
            return completed_text(text, server.control.load_as_it_is(model, _LOAD_SECONDS))
        except UnexplainedLoadFailure as error:
            reason = last_errors(server.log_since_start())
            raise UnexplainedLoadFailure(f"{error}; {reason}") from error
        finally:
            server.stop()
