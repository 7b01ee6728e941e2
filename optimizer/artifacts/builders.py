"""From a model's graphs to the files that each runtime loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.cache import CacheEntry, Facts, Key, versions
from optimizer.artifacts.engines.builder import TensorRtBuilder
from optimizer.artifacts.generated_steps import step_of
from optimizer.artifacts.repository_model import RepositoryBuilder
from optimizer.configuration.hardware import overflows_in_int8
from optimizer.configuration.runtimes import RUNTIMES, Runtime
from optimizer.configuration.runtimes.repository import REPOSITORY
from optimizer.configuration.runtimes.spec import GraphKind, RuntimeSpec
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.machine.fingerprint import cpu_flags

_IN_7_BITS: Mapping[GraphKind, GraphKind] = {
    "int8_u8s8": "int8_u8s7",
    "int8_dynamic": "int8_dynamic_s7",
}


class ArtifactBuilder(Protocol):
    """Makes the files of one runtime."""

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return what decides the files of `spec`; builds nothing.

        Raises:
            BuildFailure: when they cannot be built here.
        """

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return the files of `spec`, built where they are missing.

        Raises:
            BuildFailure: when they cannot be built.
        """

    def maker(self, entry: CacheEntry) -> str:
        """Return the library that made the files, and its version."""


@dataclass(frozen=True)
class GraphBuilder:
    """Serves a model's ONNX graphs, or what the runtime converts them to."""

    runtime: RuntimeSpec

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return the key of the graph, or of the converted files."""
        graph = context.graphs.key(self._graph(spec))
        if self.runtime.convert is None:
            return graph
        assert self.runtime.package is not None
        own = {"recipe": self.runtime.recipe, "libraries": versions(self.runtime.package)}
        return {"kind": self.runtime.name, "graph": graph, **own}

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return the graph, or the converted files."""
        kind, convert = self._graph(spec), self.runtime.convert
        if convert is None:
            return context.graphs.entry(kind)

        def build(into: Path) -> Facts:
            graph = context.graphs.entry(kind)
            convert(graph.path, into)
            return graph.facts

        return context.cache.get_or_build(self.key(spec, context), build)

    def maker(self, entry: CacheEntry) -> str:
        """Return the runtime's package and its version."""
        return _installed(self.runtime)

    def _graph(self, spec: ArtifactSpec) -> GraphKind:
        """Return the graph, with 7 bits in its weights where this processor would overflow."""
        kind = self.runtime.graphs[spec.precision]
        return _IN_7_BITS.get(kind, kind) if overflows_in_int8(cpu_flags()) else kind


@dataclass(frozen=True)
class ProgramBuilder:
    """Serves a `torch.export` program of the model itself."""

    runtime: RuntimeSpec

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return the key of the program."""
        own = {"kind": "torch", "precision": spec.precision, "recipe": self.runtime.recipe}
        return {**own, **context.graphs.model_key}

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return the program; a source that is an ONNX file has none."""
        return context.cache.get_or_build(
            self.key(spec, context),
            lambda into: context.graphs.source.export_torch(into, spec.precision),
        )

    def maker(self, entry: CacheEntry) -> str:
        """Return the runtime's package and its version."""
        return _installed(self.runtime)


@dataclass(frozen=True)
class StepBuilder:
    """Writes the files of a step of a generated pipeline, which has no graph."""

    runtime: RuntimeSpec

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return what the step is written from."""
        own = {"kind": self.runtime.name, "recipe": self.runtime.recipe}
        return {**own, "step": step_of(context.model).fingerprint()}

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return the step's files."""
        return context.cache.get_or_build(self.key(spec, context), step_of(context.model).write)

    def maker(self, entry: CacheEntry) -> str:
        """Return the step's package and its version."""
        return _installed(self.runtime)


def _builder(runtime: RuntimeSpec) -> ArtifactBuilder:
    if runtime is REPOSITORY:
        return RepositoryBuilder()
    if runtime.step:
        return StepBuilder(runtime)
    if runtime.package is None:
        return TensorRtBuilder()
    return GraphBuilder(runtime) if runtime.graphs else ProgramBuilder(runtime)


BUILDERS: Mapping[Runtime, ArtifactBuilder] = {
    name: _builder(runtime) for name, runtime in RUNTIMES.items()
}


def _installed(runtime: RuntimeSpec) -> str:
    assert runtime.package is not None
    return f"{runtime.package} {versions(runtime.package)[runtime.package]}"
