"""A model repository to hand out, which `optimizer serve` or any fit tritonserver starts."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from optimizer.artifacts.source_card import SourceCard
from optimizer.configuration.serving_config import ModelServing, ServingConfig, describe
from optimizer.errors import storage_errors
from optimizer.export.bundle.commented_config import Origins, commented
from optimizer.runtimes import RUNTIME_PACKAGE
from optimizer.triton.repository import ModelRepository
from optimizer.triton.server_options import option_flags
from optimizer.triton.session import ModelFiles

LABELS = "labels.txt"


@dataclass(frozen=True)
class Provenance:
    """Where a configuration comes from.

    Attributes:
        origins: how the values of its parameters were chosen.
        packages: versions of the packages that it was measured with, by name.
        labels: names of a model's classes, by model.
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

    Beside the models stand requirements.txt and README.md; Triton passes over files there.

    Args:
        files: by model.

    Raises:
        StorageError: when it cannot be written; `target` is then what it was.
    """
    fresh, old = _beside(target)
    with storage_errors(target):
        if old.exists() and not target.exists():
            # A run was killed between the two renames below.
            old.rename(target)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _write(fresh, templates, config, files, provenance)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def remove_model_repository(target: Path) -> None:
    """Remove a repository at once; it stays whole until it is gone. Raises StorageError."""
    fresh, old = _beside(target)
    with storage_errors(target):
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        if target.exists():
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def holds_configuration(target: Path, config: ServingConfig) -> bool:
    """Whether `write_model_repository` wrote this configuration there."""
    try:
        return _named(config) in (target / "README.md").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _named(config: ServingConfig) -> str:
    return f"configuration {config.digest}"


def _beside(target: Path) -> tuple[Path, Path]:
    """Where a bundle lies before it gets its name, and after it has lost it."""
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
        asked = repository.write(model, own.artifact, own.payloads, own.output)
        _add_labels(folder / model.name, asked, provenance.labels.get(model.name, ()))
        path = folder / model.name / "config.pbtxt"
        path.write_text(commented(asked, model, provenance.origins))
    requirements = "".join(
        f"{each}\n" for each in required_packages(config.models, provenance.packages)
    )
    (folder / "requirements.txt").write_text(requirements)
    (folder / "README.md").write_text(_readme(config, requirements))


def _add_labels(
    folder: Path, config: model_config_pb2.ModelConfig, labels: tuple[str, ...]
) -> None:
    """Have Triton answer with names where a client asks for classes; what is computed stays."""
    [output] = config.output
    if labels and list(output.dims) == [len(labels)]:
        output.label_filename = LABELS
        (folder / LABELS).write_text("".join(f"{label}\n" for label in labels))


def labels_in(cards: Mapping[str, SourceCard]) -> dict[str, tuple[str, ...]]:
    """The names of classes that sources know, by model."""
    return {name: card.labels for name, card in cards.items()}


def required_packages(
    models: Iterable[ModelServing], installed: Mapping[str, str]
) -> tuple[str, ...]:
    """What Python-hosted models need in Triton's interpreter.

    Args:
        installed: versions that were measured, by package; one that is not known is not pinned.
    """
    hosted = [m.artifact.runtime for m in models if m.artifact.backend == "python"]
    packages = dict.fromkeys(
        package for runtime in hosted for package in ("numpy", RUNTIME_PACKAGE[runtime])
    )
    return tuple(
        # A local version such as 2.13.0+cpu is one that only its own index has.
        f"{name}=={installed[name].partition('+')[0]}" if name in installed else name
        for name in packages
    )


def server_arguments(config: ServingConfig) -> tuple[str, ...]:
    """What tritonserver is given beside the repository and its own addresses."""
    return ("--disable-auto-complete-config", *option_flags(config.server))


def _readme(config: ServingConfig, requirements: str) -> str:
    names = ", ".join(model.name for model in config.models)
    start = f'tritonserver --model-repository="$PWD" {shlex.join(server_arguments(config))}'
    text = f"""# {names}: {describe(config)}

A Triton model repository of {_named(config)}. The server that measured it starts it with

    python -m optimizer serve STUDY

or, of an exported bundle, with the bundle's folder in place of STUDY; `--print` prints the commands
that do the same by hand. A Triton installation of your own (with the Python backend, where
requirements.txt names packages) starts it with

    {start}
"""
    if requirements:
        text += f"""
What is served in Triton's Python backend needs these packages in its interpreter
(requirements.txt): {" ".join(requirements.split())}
"""
    for model in config.models:
        if model.artifact.runtime == "tensorrt":
            text += f"""
{model.name}/1/model.plan runs with the TensorRT version and on the GPU model that
{model.name}/1/plan.json names, and nowhere else.
"""
    return text
