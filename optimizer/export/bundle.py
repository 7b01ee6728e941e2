"""A model repository to hand out, which `tritonserver --model-repository` starts."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optimizer.errors import storage_errors
from optimizer.serving_config import ModelServing, Runtime, describe
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ModelFiles

_PACKAGES: dict[Runtime, tuple[str, ...]] = {
    "onnxruntime": ("numpy", "onnxruntime"),
    "openvino": ("numpy", "openvino"),
    "pytorch": ("numpy", "torch"),
}
"""What model.py imports, beside Triton's own modules."""


def write_bundle(target: Path, templates: Path, model: ModelServing, files: ModelFiles) -> None:
    """Write a model repository with copies of every file, replacing `target` as a whole.

    Beside the model stand requirements.txt and README.md; Triton passes over files there.

    Raises:
        StorageError: when it cannot be written; `target` is then what it was.
    """
    fresh, old = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
    with storage_errors(target):
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _write(fresh, templates, model, files)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, templates: Path, model: ModelServing, files: ModelFiles) -> None:
    folder.mkdir(parents=True)
    repository = ModelRepository(folder, templates, place=shutil.copyfile)
    repository.write(model, files.artifact, files.payloads, files.output)
    requirements = _requirements(model.artifact.runtime)
    (folder / "requirements.txt").write_text(requirements)
    (folder / "README.md").write_text(_readme(model, requirements))


def _requirements(runtime: Runtime) -> str:
    lines = []
    for package in _PACKAGES[runtime]:
        try:
            lines.append(f"{package}=={version(package).split('+')[0]}\n")
        except PackageNotFoundError:
            lines.append(f"{package}\n")
    return "".join(lines)


def _readme(model: ModelServing, requirements: str) -> str:
    packages = " ".join(requirements.split())
    return f"""# {model.name}: {describe(model)}

A Triton model repository. Start it with:

    tritonserver --model-repository="$PWD" --disable-auto-complete-config

The model runs in Triton's Python backend, whose interpreter must have these packages
(requirements.txt): {packages}
"""
