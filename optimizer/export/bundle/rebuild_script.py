"""Build this bundle's TensorRT engines anew for the GPU and the TensorRT that are here.

    python3 rebuild_engines.py

Run it inside NVIDIA's tensorrt image of the server's release, with the bundle mounted. It needs the
standard library and TensorRT's Python package alone. Plans are built from the graphs that the
bundle ships; manifest.json then names the new files, and what they were built with and for.
"""

import hashlib
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BUILDER = "build_engine.py"
_PLAN, _FACTS, _MANIFEST = "model.plan", "plan.json", "manifest.json"


class RebuildError(Exception):
    """Why there is no new engine."""


def visible_gpu(root: Path) -> tuple[str, tuple[int, int]]:
    """Name and compute capability of the GPU that is here, as the builder sees it."""
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # it would lie in the bundle
    build_engine: Any = importlib.import_module(Path(BUILDER).stem)
    try:
        gpu: tuple[str, tuple[int, int]] | None = build_engine.visible_gpu()
    except build_engine.BuildError as error:
        raise RebuildError(str(error)) from error
    if gpu is None:
        raise RebuildError(
            "CUDA's driver is not here: an engine is built on the GPU that it is for"
        )
    return gpu


def build(root: Path, model: str, gpu: tuple[str, tuple[int, int]]) -> dict[str, Any]:
    """Put a new plan and its facts in place of a model's own; returns the facts."""
    recipe = json.loads((root / model / "recipe.json").read_text())
    recipe |= {"gpu_name": gpu[0], "compute_capability": list(gpu[1])}
    with tempfile.TemporaryDirectory(dir=root / model, prefix=".engine-") as folder:
        arguments = [json.dumps(recipe), str(root / model / "graph"), folder, folder]
        command = [sys.executable, str(root / BUILDER), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        said: dict[str, Any] = {}
        for line in done.stdout.splitlines():
            if line.startswith('{"'):
                said.update(json.loads(line))
        if "facts" not in said:
            reason = said.get("failure", f"the builder ended with {done.returncode}")
            raise RebuildError(f"{model}: {reason}")
        version = root / model / "1"
        (Path(folder) / recipe["plan"]).replace(version / _PLAN)
        (version / _FACTS).write_text(json.dumps(said["facts"], indent=1))
    facts: dict[str, Any] = said["facts"]
    return facts


def note(root: Path, facts: dict[str, dict[str, Any]]) -> None:
    """Have the manifest name the new files, whole or not at all."""
    manifest = json.loads((root / _MANIFEST).read_text())
    for model in manifest["models"]:
        if model["name"] not in facts:
            continue
        model["engine"] = facts[model["name"]]
        model["rebuilt"] = True
        for name in (_PLAN, _FACTS):
            path = f"{model['name']}/1/{name}"
            content = (root / path).read_bytes()
            manifest["files"][path] = hashlib.sha256(content).hexdigest()
    fresh = root / ".manifest.json.new"
    fresh.write_text(json.dumps(manifest, indent=2) + "\n")
    fresh.replace(root / _MANIFEST)


def main(root: Path) -> int:
    """Build every engine whose graph is here; the exit code is 0 when all are there."""
    models = sorted(path.parent.name for path in root.glob("*/recipe.json"))
    try:
        gpu = visible_gpu(root)
        for model in models:
            facts = build(root, model, gpu)
            note(root, {model: facts})
            sys.stdout.write(f"{model}: built with TensorRT {facts['tensorrt']} for {gpu[0]}\n")
    except RebuildError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
