"""What a bundle ships so that its TensorRT engines can be built anew on another GPU or TensorRT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from optimizer.artifacts.engines import build_script
from optimizer.export.bundle import rebuild_script
from optimizer.export.bundle.manifest import GRAPH, REBUILD, RECIPE
from optimizer.export.bundle.study_artifacts import EngineSource


def ship_engine_sources(root: Path, sources: Mapping[str, EngineSource]) -> tuple[str, ...]:
    """Write graphs, recipes and the scripts that build from them; nothing without an engine.

    Args:
        sources: by model.

    Returns:
        The models whose engines can be built anew.
    """
    for model, source in sources.items():
        shutil.copytree(source.graph, root / model / GRAPH)
        (root / model / RECIPE).write_text(json.dumps(source.recipe, indent=2) + "\n")
    if sources:
        for script, name in ((rebuild_script, REBUILD), (build_script, rebuild_script.BUILDER)):
            shutil.copyfile(str(script.__file__), root / name)
    return tuple(sources)
