"""A model repository to hand out, which `tritonserver --model-repository` starts."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optimizer.errors import storage_errors
from optimizer.serving_config import RUNTIME_PACKAGE, ServingConfig, describe
from optimizer.triton.repository import ModelRepository
from optimizer.triton.server_options import option_flags
from optimizer.triton.session import ModelFiles


def write_bundle(
    target: Path, templates: Path, config: ServingConfig, files: Mapping[str, ModelFiles]
) -> None:
    """Write a model repository with copies of every file, replacing `target` as a whole.

    Beside the models stand requirements.txt and README.md; Triton passes over files there.

    Args:
        files: by model.

    Raises:
        StorageError: when it cannot be written; `target` is then what it was.
    """
    fresh, old = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
    with storage_errors(target):
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _write(fresh, templates, config, files)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _write(
    folder: Path, templates: Path, config: ServingConfig, files: Mapping[str, ModelFiles]
) -> None:
    folder.mkdir(parents=True)
    repository = ModelRepository(folder, templates, place=shutil.copyfile)
    for model in config.models:
        own = files[model.name]
        repository.write(model, own.artifact, own.payloads, own.output)
    requirements = _requirements(config)
    (folder / "requirements.txt").write_text(requirements)
    (folder / "README.md").write_text(_readme(config, requirements))


def _requirements(config: ServingConfig) -> str:
    hosted = [m.artifact.runtime for m in config.models if m.artifact.backend == "python"]
    packages = dict.fromkeys(
        package for runtime in hosted for package in ("numpy", RUNTIME_PACKAGE[runtime])
    )
    return "".join(map(_requirement, packages))


def _requirement(package: str) -> str:
    try:
        return f"{package}=={version(package).split('+')[0]}\n"
    except PackageNotFoundError:
        return f"{package}\n"


def _readme(config: ServingConfig, requirements: str) -> str:
    names = ", ".join(model.name for model in config.models)
    flags = ["--disable-auto-complete-config", *option_flags(config.server)]
    start = f'tritonserver --model-repository="$PWD" {shlex.join(flags)}'
    text = f"""# {names}: {describe(config)}

A Triton model repository. Start it with:

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
