"""The TensorRT builder: from a model's graphs to a plan and its facts, in the artefact cache."""

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
from optimizer.artifacts.engines.build_locations import PLACES, BuildLocation, Folders
from optimizer.artifacts.engines.recipe import (
    FACTS_FILE,
    PLAN_FILE,
    Recipe,
    input_shapes,
    recipe_for,
)
from optimizer.artifacts.engines.script_output import facts_from_json
from optimizer.artifacts.graphs.tensorrt_rules import check_tensorrt_rules
from optimizer.configuration.hosting import BuildPlace, EngineSettings
from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from optimizer.errors import BuildFailure
from optimizer.runtimes.spec import Precision
from optimizer.runtimes.tensorrt import TENSORRT

Places = Mapping[BuildPlace, Callable[[EngineSettings], BuildLocation]]


class TensorRtBuilder:
    """A plan for one GPU model and one TensorRT: model.plan, and plan.json with its facts."""

    def __init__(self, places: Places = PLACES) -> None:
        self._places = places

    def key(self, spec: ArtifactSpec, bench: BuildContext) -> Key:
        """See `ArtifactBuilder`."""
        return self._engine(spec, bench).key

    def entry(self, spec: ArtifactSpec, bench: BuildContext) -> CacheEntry:
        """See `ArtifactBuilder`. Raises BuildFailure where there is no GPU to build it on."""
        engine = self._engine(spec, bench)
        return bench.cache.get_or_build(engine.key, engine.build)

    def maker(self, entry: CacheEntry) -> str:
        """See `ArtifactBuilder`."""
        facts = read_facts(entry.path)
        assert facts is not None
        return f"tensorrt {facts.tensorrt}"

    def _engine(self, spec: ArtifactSpec, bench: BuildContext) -> _Engine:
        if bench.engines is None:
            raise BuildFailure("an engine is built on and for a GPU, and there is none")
        if spec.profile is None:
            raise BuildFailure("an engine needs a profile of batch sizes")
        place = self._places[bench.engines.place](bench.engines)
        return _Engine(spec.precision, spec.profile, bench, bench.engines, place)


def read_facts(folder: Path) -> EngineFacts | None:
    """The facts beside a plan; None where the folder holds no engine."""
    file = folder / FACTS_FILE
    return facts_from_json(json.loads(file.read_text())) if file.exists() else None


@dataclass(frozen=True)
class _Engine:
    """One engine that is wanted."""

    precision: Precision
    profile: EngineProfile
    bench: BuildContext
    settings: EngineSettings
    place: BuildLocation

    @cached_property
    def key(self) -> Key:
        return {
            "kind": "tensorrt",
            "precision": self.precision,
            "batch": [self.profile.optimal_batch_size, self.profile.max_batch_size],
            "graph": key_digest(self.bench.graphs.key(TENSORRT.graphs[self.precision])),
            "recipe": asdict(self.recipe),
            "place": self.settings.place,
            **self.identity,
        }

    def build(self, into: Path) -> Facts:
        graph = self.bench.graphs.entry(TENSORRT.graphs[self.precision])
        check_tensorrt_rules(graph.path / "model.onnx")
        with self._timings(into) as timings:
            folders = Folders(graph.path, into, timings)
            facts = self.place.run(self.recipe, folders, self.bench.report_progress)
        if not (into / PLAN_FILE).is_file():
            raise BuildFailure(f"the engine's build ended well, but left no {PLAN_FILE}")
        (into / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=1))
        return graph.facts

    @contextmanager
    def _timings(self, into: Path) -> Iterator[Path]:
        """A folder with a copy of what has been timed, which the build adds to.

        It is kept once there is an engine: whoever is killed before, the cache's own file is whole.
        """
        kept, folder = self.bench.cache.timings / self._timing_cache, into / "timings"
        own = folder / kept.name
        folder.mkdir()
        with suppress(FileNotFoundError):
            shutil.copyfile(kept, own)
        yield folder
        if own.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            own.replace(kept)
        shutil.rmtree(folder)  # trtexec leaves a lock there

    @cached_property
    def recipe(self) -> Recipe:
        inputs = input_shapes(self.bench.model.payloads, self.profile)
        return recipe_for(self.precision, inputs, self.settings, self._timing_cache)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        return self.place.identity()

    @property
    def _timing_cache(self) -> str:
        """One for each TensorRT and GPU model: timings hold for no other."""
        name = "-".join([*self.identity.values(), self.settings.gpu.name])
        return re.sub(r"[^A-Za-z0-9.]+", "-", name) + ".cache"
