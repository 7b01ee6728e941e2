"""Rebuild this bundle's TensorRT engines for this machine's GPU and TensorRT.

    python3 rebuild_engines.py

Run it inside NVIDIA's tensorrt image of the server's release, with the bundle mounted. It needs
only the standard library and the Python package of TensorRT. Engines are built from the bundle's
graphs; manifest.json then names the new files, their TensorRT version and their GPU.
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
    """Why an engine could not be built."""


def visible_gpu(root: Path) -> tuple[str, tuple[int, int]]:
    """Return name and compute capability of this machine's GPU, as the builder sees it."""
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # compiled files would lie in the bundle
    build_engine: Any = importlib.import_module(Path(BUILDER).stem)
    try:
        gpu: tuple[str, tuple[int, int]] | None = build_engine.visible_gpu()
    except build_engine.BuildError as error:
        raise RebuildError(str(error)) from error
    if gpu is None:
        raise RebuildError(
            "no CUDA driver found: an engine must be built on the GPU that will run it"
        )
    return gpu


def build(root: Path, model: str, gpu: tuple[str, tuple[int, int]]) -> dict[str, Any]:
    """Replace a model's engine and the facts about it, and return the new facts."""
    recipe = json.loads((root / model / "recipe.json").read_text())
    recipe |= {"gpu_name": gpu[0], "compute_capability": list(gpu[1])}
    with tempfile.TemporaryDirectory(dir=root / model, prefix=".engine-") as folder:
        arguments = [json.dumps(recipe), str(root / model / "graph"), folder, folder]
        command = [sys.executable, str(root / BUILDER), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        reported: dict[str, Any] = {}
        for line in done.stdout.splitlines():
            if line.startswith('{"'):
                reported.update(json.loads(line))
        if "facts" not in reported:
            reason = reported.get("failure", f"the builder exited with {done.returncode}")
            raise RebuildError(f"{model}: {reason}")
        version = root / model / "1"
        (Path(folder) / recipe["plan"]).replace(version / _PLAN)
        (version / _FACTS).write_text(json.dumps(reported["facts"], indent=1))
    facts: dict[str, Any] = reported["facts"]
    return facts


def update_manifest(root: Path, facts: dict[str, dict[str, Any]]) -> None:
    """Write the new files into the manifest, atomically; `facts` are by model."""
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
    new = root / ".manifest.json.new"
    new.write_text(json.dumps(manifest, indent=2) + "\n")
    new.replace(root / _MANIFEST)


def main(root: Path) -> int:
    """Rebuild every engine whose graph the bundle has; return the exit code."""
    models = sorted(path.parent.name for path in root.glob("*/recipe.json"))
    try:
        gpu = visible_gpu(root)
        for model in models:
            facts = build(root, model, gpu)
            update_manifest(root, {model: facts})
            sys.stdout.write(f"{model}: built with TensorRT {facts['tensorrt']} for {gpu[0]}\n")
    except RebuildError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
