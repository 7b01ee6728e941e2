"""Write new space files, for a model of an existing Triton repository among others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from optimizer.commands.completed_source import complete_source
from optimizer.commands.hosts import EMBEDDED_BACKEND
from optimizer.commands.run_context import open_space
from optimizer.configuration.hosting import EmbeddedHost
from optimizer.errors import OptimizerError, UsageError
from optimizer.export.deployed_space import ObservedTraffic, space_text
from optimizer.machine.slots import local_hardware
from optimizer.triton.completed_config import left_out
from optimizer.triton.deployed_config import (
    CONFIG_FILE,
    backend_of,
    is_model_folder,
    model_folders,
    read_if_present,
)
from optimizer.triton.observed_calls import calls_in_code
from optimizer.workload.model_spec import RepositorySource


def write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet. Raises UsageError."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path}: must not exist yet; it is not overwritten") from error
    except OSError as error:
        raise UsageError(f"{path}: must be writable ({error.strerror})") from error


def write_space_from(given: Path, path: Path, traffic: ObservedTraffic | None = None) -> None:
    """Write a space file for a deployed model to `path`, which is read once to check it.

    Args:
        given: a model repository that holds one model, or the folder of a model in a repository.
        traffic: of production; None leaves placeholders.

    Raises:
        UsageError: when `given` is no such folder, when the model cannot be tuned or described, or
            when `path` cannot be written.
        RequirementError: when the model's configuration leaves out its tensors, and the embedded
            server cannot complete it.
    """
    source = _complete(find_model(given))
    # A path that was given relative to the working folder becomes relative to the file's.
    in_file = source.repository
    if not given.is_absolute():
        in_file = Path(os.path.relpath(in_file, path.absolute().parent))
    text = space_text(source, str(in_file), local_hardware(), path.name, traffic)
    write_new(path, text)
    try:
        open_space(path, lambda *_: source)
    except OptimizerError as error:
        path.unlink()
        raise UsageError(f"{source.folder}: no space file can describe it: {error}") from error


def _complete(source: RepositorySource) -> RepositorySource:
    """Read calls from the code, and complete the configuration by the embedded server.

    The server is asked where it can run the model, or where tensors are left out.
    """
    source = replace(source, calls=calls_in_code(source))
    text, config = read_if_present(source.folder)
    tensors_left_out = {"input", "output"} & {*left_out(text)}
    if backend_of(config) in ("", EMBEDDED_BACKEND) or tensors_left_out:
        return complete_source("model", source, EmbeddedHost(), ())
    return source


def find_model(given: Path, option: str = "--from") -> RepositorySource:
    """Return the model of a folder, which is a model's or a repository's with one model.

    Args:
        option: that gave the folder, for errors.

    Raises:
        UsageError: when there is no model, or which of several is meant is open.
    """
    # Normalised, so that the last part is a name; symbolic links stay.
    folder = Path(os.path.normpath(given.absolute()))
    if not folder.is_dir():
        raise UsageError(f"{option}: {given} must be a model repository, or REPOSITORY/MODEL")
    if is_model_folder(folder):
        return RepositorySource(folder.parent, folder.name)
    models = [each.name for each in model_folders(folder)]
    if not models:
        raise UsageError(
            f"{option}: {given} contains no model: each is a folder with {CONFIG_FILE} and a "
            "folder for each version, such as 1"
        )
    if len(models) > 1:
        listed = "\n  ".join(str(given / model) for model in models)
        raise UsageError(f"{option}: {given} contains several models; give one of\n  {listed}")
    return RepositorySource(folder, models[0])
