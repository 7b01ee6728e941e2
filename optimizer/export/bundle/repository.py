"""Model repositories with README and requirements: best/, baseline/ and exported bundles."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from optimizer.artifacts.source_card import SourceCard
from optimizer.configuration.runtimes import HOSTED_PACKAGE, RUNTIMES
from optimizer.configuration.serving_config import ModelServing, ServingConfig, describe
from optimizer.errors import storage_errors
from optimizer.export.bundle.commented_config import Origins, commented
from optimizer.export.rendering import render
from optimizer.triton.repository import ModelRepository
from optimizer.triton.server_options import option_flags
from optimizer.triton.session import ModelFiles

_LABELS = "labels.txt"


@dataclass(frozen=True)
class Provenance:
    """Origin of a configuration.

    Attributes:
        origins: how the values of its parameters were chosen.
        packages: installed versions in the measurement, by package.
        labels: class names, by model.
    """

    origins: Origins
    packages: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def write_model_repository(
    target: Path,
    templates: Path,
    config: ServingConfig,
    files: Mapping[str, ModelFiles],
    provenance: Provenance,
) -> None:
    """Write a model repository with copies of every file, replacing `target` as a whole.

    requirements.txt and README.md lie beside the models, where Triton ignores files.

    Args:
        files: by model.

    Raises:
        StorageError: when it cannot be written; `target` is then unchanged.
    """
    new, old = _temporary_folders(target)
    with storage_errors(target):
        if old.exists() and not target.exists():
            # A run was killed between the two renames below.
            old.rename(target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _write(new, templates, config, files, provenance)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def remove_model_repository(target: Path) -> None:
    """Remove a repository at once; it stays whole until it is gone. Raises StorageError."""
    new, old = _temporary_folders(target)
    with storage_errors(target):
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        if target.exists():
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def holds_configuration(target: Path, config: ServingConfig) -> bool:
    """Return whether `write_model_repository` wrote this configuration there."""
    try:
        return _identity(config) in (target / "README.md").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _identity(config: ServingConfig) -> str:
    return f"configuration {config.digest}"


def _temporary_folders(target: Path) -> tuple[Path, Path]:
    """Return where a repository lies before it gets its name, and after it has lost it."""
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")


def _write(
    folder: Path,
    templates: Path,
    config: ServingConfig,
    files: Mapping[str, ModelFiles],
    provenance: Provenance,
) -> None:
    folder.mkdir(parents=True)
    repository = ModelRepository(folder, templates, place=shutil.copyfile)
    for model in config.models:
        own = files[model.name]
        written = repository.write(model, own.artifact, own.payloads, own.outputs)
        _add_labels(folder / model.name, written, provenance.labels.get(model.name, ()))
        if model.artifact.backend != "repository":  # whose text is its owner's
            path = folder / model.name / "config.pbtxt"
            path.write_text(commented(written, model, provenance.origins))
    requirements = required_packages(config.models, provenance.packages)
    (folder / "requirements.txt").write_text("".join(f"{each}\n" for each in requirements))
    readme = {
        "config": config,
        "description": describe(config),
        "configuration": _identity(config),
        "arguments": shlex.join(server_arguments(config)),
        "requirements": requirements,
    }
    (folder / "README.md").write_text(render("bundle/README.md.jinja", readme))


def _add_labels(
    folder: Path, config: model_config_pb2.ModelConfig, labels: tuple[str, ...]
) -> None:
    """Let Triton return class names to clients of its classification extension."""
    fitting = [each for each in config.output if list(each.dims) == [len(labels)]]
    if labels and len(fitting) == 1:
        [output] = fitting
        output.label_filename = _LABELS
        (folder / _LABELS).write_text("".join(f"{label}\n" for label in labels))


def labels_in(cards: Mapping[str, SourceCard]) -> dict[str, tuple[str, ...]]:
    """Return the class names that sources have, by model."""
    return {name: card.labels for name, card in cards.items()}


def required_packages(
    models: Iterable[ModelServing], installed: Mapping[str, str]
) -> tuple[str, ...]:
    """Return pip requirements of models in Triton's Python backend.

    Args:
        installed: versions in the measurement, by package; others are not pinned.
    """
    packages: list[str] = []
    for model in models:
        if model.artifact.backend == "python":
            spec = RUNTIMES[model.artifact.runtime]
            on_gpus = model.groups[0].kind == "KIND_GPU" and spec.package_on_gpus
            packages += ["numpy", on_gpus or HOSTED_PACKAGE[spec.name]]
    return tuple(
        # Only its own index has a local version such as 2.13.0+cpu.
        f"{name}=={installed[name].partition('+')[0]}" if name in installed else name
        for name in dict.fromkeys(packages)
    )


def server_arguments(config: ServingConfig) -> tuple[str, ...]:
    """Return tritonserver's arguments, without the repository and the ports."""
    return ("--disable-auto-complete-config", *option_flags(config.server))
