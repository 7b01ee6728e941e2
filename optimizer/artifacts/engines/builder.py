"""Build TensorRT engines from a model's graphs into the artefact cache."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.cache import CacheEntry, Facts, Key, key_digest
from optimizer.artifacts.engines.build_locations import BUILD_LOCATIONS, BuildLocation, Folders
from optimizer.artifacts.engines.recipe import (
    FACTS_FILE,
    PLAN_FILE,
    Recipe,
    input_shapes,
    recipe_for,
)
from optimizer.artifacts.engines.script_output import facts_from_json
from optimizer.artifacts.graphs.tensorrt_rules import check_tensorrt_rules
from optimizer.configuration.hosting import BuildLocationName, EngineSettings
from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.runtimes.tensorrt import TENSORRT
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from optimizer.errors import BuildFailure


class TensorRtBuilder:
    """Builds model.plan for one GPU model and one TensorRT, and plan.json with its facts."""

    def __init__(
        self,
        locations: Mapping[
            BuildLocationName, Callable[[EngineSettings], BuildLocation]
        ] = BUILD_LOCATIONS,
    ) -> None:
        self._locations = locations

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return graph, recipe, batch sizes, and TensorRT's version or image."""
        return self._engine(spec, context).key

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return the engine, built on the GPU of the settings where it is missing."""
        engine = self._engine(spec, context)
        return context.cache.get_or_build(engine.key, engine.build)

    def maker(self, entry: CacheEntry) -> str:
        """Return TensorRT's version, as the build reported it."""
        facts = read_facts(entry.path)
        assert facts is not None
        return f"tensorrt {facts.tensorrt}"

    def _engine(self, spec: ArtifactSpec, context: BuildContext) -> _Engine:
        if context.engines is None:
            raise BuildFailure("an engine is built on and for a GPU, and there is none")
        if spec.profile is None:
            raise BuildFailure("an engine needs a profile of batch sizes")
        location = self._locations[context.engines.build_in](context.engines)
        return _Engine(spec.precision, spec.profile, context, context.engines, location)


def read_facts(folder: Path) -> EngineFacts | None:
    """Return the facts beside a plan; None where the folder holds no engine."""
    file = folder / FACTS_FILE
    return facts_from_json(json.loads(file.read_text())) if file.exists() else None


@dataclass(frozen=True)
class _Engine:
    precision: Precision
    profile: EngineProfile
    context: BuildContext
    settings: EngineSettings
    location: BuildLocation

    @cached_property
    def key(self) -> Key:
        return {
            "kind": "tensorrt",
            "precision": self.precision,
            "batch": [self.profile.optimal_batch_size, self.profile.max_batch_size],
            "graph": key_digest(self.context.graphs.key(TENSORRT.graphs[self.precision])),
            "recipe": asdict(self.recipe),
            "place": self.settings.build_in,
            **self.identity,
        }

    def build(self, into: Path) -> Facts:
        graph = self.context.graphs.entry(TENSORRT.graphs[self.precision])
        batched = self.context.model.payloads.as_served().batched
        check_tensorrt_rules(graph.path / "model.onnx", batched=batched)
        with self._timings(into) as timings:
            folders = Folders(graph.path, into, timings)
            facts = self.location.run(self.recipe, folders, self.context.report_progress)
        plan = into / PLAN_FILE
        if not plan.is_file() or not plan.stat().st_size:
            state = "an empty" if plan.is_file() else "no"
            raise BuildFailure(f"the engine's build succeeded, but wrote {state} {PLAN_FILE}")
        (into / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=1))
        return graph.facts

    @contextmanager
    def _timings(self, into: Path) -> Iterator[Path]:
        """Yield a folder with a copy of the timing cache, which the build extends.

        The copy replaces the cache's file after a successful build, so a kill leaves that whole.
        """
        cached, folder = self.context.cache.timings / self._timing_cache, into / "timings"
        copy = folder / cached.name
        folder.mkdir()
        with suppress(FileNotFoundError):
            shutil.copyfile(cached, copy)
        yield folder
        if copy.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            copy.replace(cached)
        shutil.rmtree(folder)  # trtexec leaves a lock there

    @cached_property
    def recipe(self) -> Recipe:
        inputs = input_shapes(self.context.model.payloads.as_served(), self.profile)
        return recipe_for(self.precision, inputs, self.settings, self._timing_cache)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        return self.location.identity()

    @property
    def _timing_cache(self) -> str:
        """File name of the timing cache, which holds for one TensorRT and GPU model."""
        name = "-".join([*self.identity.values(), self.settings.gpu.name])
        return re.sub(r"[^A-Za-z0-9.]+", "-", name) + ".cache"
