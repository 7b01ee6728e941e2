"""Ask a server for what the configurations of a deployed model and of its steps leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from optimizer.commands.code_consent import log_code
from optimizer.commands.hosts import Needs, launch_with, require_server
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import Host, RemoteHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import RequirementError, TrialFailure, UsageError
from optimizer.files.owned_names import temporary_folder
from optimizer.files.untrusted import is_safe_name
from optimizer.machine.slots import Slot, local_slot
from optimizer.study.directory import StudyDirectory
from optimizer.triton.completed_config import completed_text, left_out
from optimizer.triton.deployed_config import CONFIG_FILE, backend_of, read_if_present, refusal_of
from optimizer.triton.deployed_loading import loaded_as_it_is
from optimizer.triton.deployed_pipeline import composing_models
from optimizer.triton.launcher import RunningServer
from optimizer.triton.repository import ModelRepository
from optimizer.workload.model_spec import RepositorySource

_REMEDY = (
    "write a complete one; GET v2/models/MODEL/config of a server that has loaded the model "
    "returns it"
)


def complete_source(
    model: str, source: RepositorySource, host: Host, gpus: tuple[Gpu, ...]
) -> RepositorySource:
    """Return a source with complete configurations, from a server where files leave fields out.

    The configurations of the source's steps are completed too.

    Args:
        model: name that it is served under where its own does not serve: a remote server's
            repository may have a model of that name, and Triton starts Python models by a shell.
        host: where the server is started; nothing is left running.
        gpus: of the server.

    Raises:
        UsageError: when a file is no configuration, or the server does not complete it either.
        RequirementError: when no server could be asked, with the reason.
    """
    # The name may tell the backend: NAME.BACKEND.
    own = is_safe_name(source.model) and not isinstance(host, RemoteHost)
    incomplete = {
        part.model if own or part.model != source.model else model: part
        for part in composing_models(source)
        if _is_incomplete(part)
    }
    if not incomplete:
        return source
    slot = local_slot(tuple(gpu.uuid for gpu in gpus))
    return replace(source, completions=tuple(_completions(incomplete, host, slot)))


def _is_incomplete(source: RepositorySource) -> bool:
    text, config = read_if_present(source.folder)
    return bool(left_out(text)) and refusal_of(config) is None


def _completions(
    incomplete: Mapping[str, RepositorySource], host: Host, slot: Slot
) -> Iterator[tuple[str, str]]:
    """Yield the names of models and their complete configurations.

    Args:
        incomplete: by the name that a model is served under.
    """
    [first, *_] = incomplete.values()
    backends = {backend_of(read_if_present(part.folder)[1]) for part in incomplete.values()}
    needs = Needs(tuple(incomplete), (), tuple(sorted(backends - {""})))
    try:
        require_server(host, needs, slot)
        with completing_server(host, first.repository, slot) as (server, repository):
            for name, source in incomplete.items():
                first = source
                yield source.model, _completed(name, source, server, repository)
    except (RequirementError, TrialFailure) as error:
        lacks = f"{_rule(first)}, and the server could not complete it ({error})"
        raise RequirementError(lacks, _REMEDY) from error


@contextmanager
def completing_server(
    host: Host, models: Path, slot: Slot
) -> Iterator[tuple[RunningServer, ModelRepository]]:
    """Start a server that completes configurations, beside its own repository."""
    with temporary_folder() as folder:
        # Only these two folders are visible in a container.
        launcher, repository = launch_with(host, StudyDirectory(folder), models)
        server = launcher.start(ServerOptions(), slot, completes=True)
        try:
            yield server, repository
        finally:
            server.stop()


def _completed(
    name: str, source: RepositorySource, server: RunningServer, repository: ModelRepository
) -> str:
    """Return the text of a configuration as a server completes it.

    Raises:
        UsageError: where it does not.
        TrialFailure: where it cannot load the model.
    """
    log_code(source.folder)
    running = loaded_as_it_is(name, source.folder, server, repository)
    completed = completed_text(read_if_present(source.folder)[0], running)
    still = [each for each in left_out(completed) if each != "max_batch_size"]
    if still:
        rule = f"{_rule(source)}, and the server does not complete {', '.join(still)}"
        raise UsageError(f"{rule}: {_REMEDY}")
    return completed


def _rule(source: RepositorySource) -> str:
    path = source.folder / CONFIG_FILE
    if not path.exists():
        return f"{path} is missing"
    return f"{path} leaves out {', '.join(left_out(read_if_present(source.folder)[0]))}"
