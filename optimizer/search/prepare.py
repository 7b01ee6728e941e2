"""The prepare phase: every artefact of the space is built, served and gated for accuracy.

Artefacts that fail leave the space with their reason before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.artifacts.accuracy import FailingBatch
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel
from optimizer.configuration.hardware import Hardware, processor_lacks
from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.model_space import EmptySpaceError
from optimizer.configuration.runtimes import RUNTIMES
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec, ServerOptions
from optimizer.errors import (
    EverythingFailedError,
    SpaceChangedError,
    TrialFailure,
    UsageError,
)
from optimizer.files.atomic import write_json
from optimizer.machine.fingerprint import cpu_flags
from optimizer.measurement.host_share import HostTiming
from optimizer.search.accuracy_gate import AccuracyGate, GateResult
from optimizer.search.deployed_reference import deployed_reference
from optimizer.search.gate_server import DeployedPipeline
from optimizer.search.generated_pipeline import generated_pipeline
from optimizer.search.prepared import Prepared
from optimizer.search.response_cache import without_cache
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, PhaseStarted, StepStarted, Watcher
from optimizer.study.files import read_prepared
from optimizer.study.gated_artifact import (
    GatedArtifact,
    GatePlan,
    from_json,
    memory_mib,
    ready_event,
    to_json,
)
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.workload.model_spec import ModelSpec, PipelineSource, RepositorySource
from optimizer.workload.streams import stack

_LOW_INT8_SHARE = 0.5
"""Share of the multiply-accumulates in INT8 below which a warning is given."""

_LONGEST_TIMED_MS = 100.0
"""Longer executions are not timed without the server: its overhead is small in comparison."""


@dataclass(frozen=True)
class _Source:
    """A model's references, and its ONNX graph where one is needed.

    Attributes:
        target: the model of whose answers the references are: the model itself, or the ensemble
            that it is a step of.
        pipeline: the ensemble with its steps; None for a model that is served alone.
        seconds: build time of references and graph in this run.
        no_graph: why the export of a needed ONNX graph failed.
    """

    model: ModelSpec
    target: ModelSpec
    prepared: PreparedModel
    seconds: float
    no_graph: str | None = None
    pipeline: DeployedPipeline | None = None

    @property
    def generated(self) -> bool:
        """Whether the model joins the steps of a generated pipeline."""
        return isinstance(self.model.source, PipelineSource)


@dataclass(frozen=True)
class PreparePhase:
    """Builds and gates the artefacts of all models."""

    directory: StudyDirectory
    builder: BuildProcess
    session: ServingSession
    watch: Watcher

    def run(self, models: Sequence[ModelSpec], space: SearchSpace) -> Prepared:
        """Build and gate every artefact of the space.

        Raises:
            EverythingFailedError: when no artefact of a model is left, with every reason.
            SpaceChangedError: when a model's files have changed since the study was started.
            StorageError: when the study's directory cannot be written.
        """
        self.watch(PhaseStarted("prepare", len(space.artifacts)))
        sources = self._sources({model.name: model for model in models}, space)
        earlier = self._earlier()
        rows = {row["artifact"]: row for row in earlier["artifacts"]}
        gated: list[GatedArtifact] = []
        files: dict[ArtifactSpec, ModelFiles] = {}
        # The steps of a generated pipeline are judged by themselves before it is.
        for spec in sorted(space.artifacts, key=lambda each: sources[each.model].generated):
            source = sources[spec.model]
            if source.generated:
                source = replace(source, pipeline=generated_pipeline(spec, space, files, gated))
            kind, cores = space.kind_of(spec.model), space.hardware.cores
            gate = AccuracyGate(self.session, kind, cores, self.watch)
            artifact, result = self._gated(spec, source, space, gate, rows.get(spec.label))
            gated.append(result)
            if artifact is not None and result.dropped is None:
                model = source.model
                files[spec] = ModelFiles(
                    artifact.path,
                    model.payloads,
                    source.prepared.outputs,
                    artifact.engine,
                    model.version,
                )
            self._announce(result)
        built = [
            *(source.seconds for source in sources.values()),
            *(r.build_seconds for r in gated),
        ]
        building = earlier["building_seconds"] + sum(built)
        prepared = {"building_seconds": building, "artifacts": [to_json(r) for r in gated]}
        write_json(self.directory.prepared, prepared)
        _require_one_artifact_each(models, gated)
        left = space.without([result.spec for result in gated if result.dropped is not None])
        failing = {r.spec: r.failing.size for r in gated if r.failing is not None}
        fitting = self._within_memory(left.without_batches(failing), gated)
        return Prepared(fitting, files, tuple(gated), building)

    def _sources(
        self, models: Mapping[str, ModelSpec], space: SearchSpace
    ) -> Mapping[str, _Source]:
        """Return the source of each model.

        Steps share the references of their ensemble; those of a generated pipeline have their own.
        """
        sources = {}
        for target in space.targets:
            sources[target] = source = self._source(models[target], models, space)
            for step in (space.graph or NO_GRAPH).below(target):
                sources[step] = (
                    self._source(models[step], models, space)
                    if source.generated
                    else replace(source, model=models[step])
                )
        return sources

    def _as_deployed(
        self, model: ModelSpec, models: Mapping[str, ModelSpec], space: SearchSpace
    ) -> _Source:
        """Serve a model of a repository as it is deployed, for its reference outputs."""
        self.watch(StepStarted(f"serving {model.name} as deployed, for the reference"))
        deployed = space.config(space.baseline).part(model.name)
        # A cache would give the answers of another artefact.
        config = replace(without_cache(deployed), server=ServerOptions())
        [spec] = [own.artifact for own in config.models if own.name == model.name]
        lengths = sorted(_plan(spec, model, space).lengths)
        try:
            files = {
                own.name: ModelFiles(
                    self.builder.build(own.artifact, models[own.name]).path,
                    model.payloads,
                    outputs=(),
                    version=models[own.name].version,
                )
                for own in config.models
            }
            prepared = deployed_reference(self.session, model, config, files, lengths)
        except TrialFailure as error:
            raise EverythingFailedError(f"model {model.name} as deployed: {error}") from error
        pipeline = None
        if config.graph is not None:
            pipeline = DeployedPipeline(config, files).with_most_instances(space)
        return _Source(model, model, prepared, 0.0, pipeline=pipeline)

    def _source(
        self, model: ModelSpec, models: Mapping[str, ModelSpec], space: SearchSpace
    ) -> _Source:
        """Compute a model's reference outputs, and export its graph where one is needed."""
        if isinstance(model.source, RepositorySource):
            return self._as_deployed(model, models, space)
        self.watch(StepStarted(f"reading {model.name} and its FP32 reference"))
        own = [spec for spec in space.artifacts if spec.model == model.name]
        lengths = {n for spec in own for n in _plan(spec, model, space).lengths}
        tell = self._progress_of(f"reading {model.name}")
        try:
            prepared = self.builder.prepare_model(model, tell, sorted(lengths))
            self.builder.require_room(own, model, prepared.weight_bytes)
        except TrialFailure as error:
            raise EverythingFailedError(f"model {model.name}: {error}") from error
        if prepared.no_batching:
            model = _without_batches(model, prepared.no_batching, space)
        seconds = prepared.seconds if prepared.built else 0.0
        if not any(map(_made_from_graph, own)):
            return _Source(model, model, prepared, seconds)
        self.watch(StepStarted(f"exporting {model.name} to ONNX"))
        try:
            graph = self.builder.export_graph(model)
        except TrialFailure as error:
            return _Source(model, model, prepared, seconds, no_graph=str(error))
        return _Source(model, model, prepared, seconds + (graph.seconds if graph.built else 0.0))

    def _announce(self, result: GatedArtifact) -> None:
        self.watch(ready_event(result))
        if result.dropped is None and result.failing is not None:
            text = (
                f"{result.spec.label}: configurations with a max_batch_size of "
                f"{result.failing.size} or more are excluded: {result.failing.reason}"
            )
            self.watch(Note(text, warning=True))

    def _progress_of(self, step: str) -> Callable[[str], None]:
        """Return a function that reports the progress of a step."""
        return lambda progress: self.watch(StepStarted(f"{step}: {progress}"))

    def _earlier(self) -> Mapping[str, Any]:
        """Return prepared.json as the study's earlier runs left it."""
        if self.directory.prepared.exists():
            return read_prepared(self.directory)
        return {"building_seconds": 0.0, "artifacts": []}

    def _gated(
        self,
        spec: ArtifactSpec,
        source: _Source,
        space: SearchSpace,
        gate: AccuracyGate,
        row: Mapping[str, Any] | None,
    ) -> tuple[ModelArtifact | None, GatedArtifact]:
        reason = refusal(spec, source.model, space.hardware)
        if source.generated and source.pipeline is None:
            reason = "its steps have no artefact that can be served"
        if reason is None and source.no_graph is not None and _made_from_graph(spec):
            reason = f"build failed: {source.no_graph}"
        if reason is not None:
            return None, GatedArtifact(spec, dropped=reason)
        self.watch(StepStarted(f"building {spec.label}"))
        tell = self._progress_of(f"building {spec.label}")
        try:
            artifact = self.builder.build(spec, source.model, tell)
        except TrialFailure as error:
            return None, GatedArtifact(spec, dropped=f"build failed: {error}")
        self._warn_of_low_int8_share(artifact)
        seconds = 0.0 if artifact.cached else artifact.build_seconds
        plan = _plan(spec, source.target, space)
        if row is not None and row["sha256"] is not None:
            self._refuse_changed_file(artifact, row["sha256"])
            judged = from_json(row, spec)
            if judged is not None and judged.covers(plan):
                return artifact, replace(judged, build_seconds=seconds)
        smallest = space.use_of(spec).max_batch_sizes[0]
        judged = self._served(artifact, source, plan, gate, smallest)
        return artifact, replace(judged, build_seconds=seconds)

    def _served(
        self,
        artifact: ModelArtifact,
        source: _Source,
        plan: GatePlan,
        gate: AccuracyGate,
        smallest: int,
    ) -> GatedArtifact:
        """Judge an artefact on the server, and time it without.

        Args:
            smallest: max_batch_size of the space; without it, the artefact is of no use.
        """
        spec, sha256 = artifact.spec, artifact.sha256
        self.watch(StepStarted(f"serving {spec.label} for the accuracy gate"))
        try:
            served = gate.judge(artifact, source.target, source.prepared, plan, source.pipeline)
        except TrialFailure as error:
            return GatedArtifact(spec, sha256, dropped=f"could not be served: {error}")
        dropped, failing = served.dropped, served.failing
        if source.prepared.no_batching:
            failing = FailingBatch(2, source.prepared.no_batching)
        if dropped is None and failing is not None and failing.size <= smallest:
            dropped = failing.reason
        timed = dropped is None and gate.kind == "KIND_CPU"
        timings = self._timings(artifact, source, served) if timed else ()
        return GatedArtifact(
            spec,
            sha256,
            accuracy=served.accuracy,
            instance_mib=served.memory.device_mib,
            host_mib=served.memory.host_mib,
            dropped=dropped,
            shapes=served.shapes,
            failing=failing,
            timings=timings,
            int8_share=artifact.int8_share,
        )

    def _timings(
        self, artifact: ModelArtifact, source: _Source, served: GateResult
    ) -> tuple[HostTiming, ...]:
        """Time an artefact of Triton's Python backend on a CPU without the server."""
        sizes = [n for n, ms in sorted(served.served_ms.items()) if ms <= _LONGEST_TIMED_MS]
        if artifact.spec.backend != "python" or not sizes:
            return ()
        rows = source.prepared.evaluation
        batches = [stack([rows[n % len(rows)] for n in range(size)]) for size in sizes]
        try:
            outputs = [output.name for output in source.prepared.outputs]
            bare = self.builder.time_bare(artifact, outputs, batches)
        except TrialFailure:  # timing is optional: the artefact passed the gate
            return ()
        pairs = zip(sizes, bare, strict=True)
        return tuple(HostTiming(size, served.served_ms[size], ms) for size, ms in pairs)

    def _warn_of_low_int8_share(self, artifact: ModelArtifact) -> None:
        share = artifact.int8_share
        if share is not None and share < _LOW_INT8_SHARE:
            text = (
                f"{artifact.spec.label}: INT8 covers {share:.0%} of the multiply-accumulates; the "
                "rest is computed in floating point, so expect little speedup"
            )
            self.watch(Note(text, warning=True))

    def _refuse_changed_file(self, artifact: ModelArtifact, sha256: str) -> None:
        if sha256 != artifact.sha256:
            raise SpaceChangedError(
                f"{artifact.spec.label} has changed since study {self.directory.name} was started "
                f"(sha256 {sha256[:12]}, now {artifact.sha256[:12]}); start a new study with "
                "--study NEW"
            )

    def _within_memory(self, space: SearchSpace, gated: Sequence[GatedArtifact]) -> SearchSpace:
        """Return the space without configurations whose instances do not fit in memory.

        Instances on GPUs must fit there, and what they take of the machine's memory in that.
        """
        hardware = space.hardware
        on_device = {each.spec: each.instance_mib for each in gated}
        fitting = self._within(space, hardware.memory_for_instances_mib, on_device)
        if not hardware.gpus:
            return fitting
        on_host = {each.spec: each.host_mib for each in gated}
        available = hardware.host_memory_for_instances_mib
        return self._within(fitting, available, on_host, of_machine=True)

    def _within(
        self,
        space: SearchSpace,
        available: float,
        measured: Mapping[ArtifactSpec, float | None],
        *,
        of_machine: bool = False,
    ) -> SearchSpace:
        instance_mib = memory_mib(measured, space.graph)
        try:
            fitting = space.within_memory(available, instance_mib, of_machine=of_machine)
            left = len(space) - len(fitting)
        except EmptySpaceError as error:
            raise EverythingFailedError(str(error)) from error
        if left:
            largest, memory = max(instance_mib.values()), fitting.limits.memory[-1]
            text = (
                f"{left} of {len(space)} configurations are excluded: their instances (up to "
                f"{largest:.0f} MiB each) do not fit in {memory.text}"
            )
            self.watch(Note(text, warning=True))
        return fitting


def refusal(spec: ArtifactSpec, model: ModelSpec, hardware: Hardware) -> str | None:
    """Return why an artefact is not built at all; None where it is."""
    calibrated = spec.precision in {"int8", "int8_attention"}
    in_int8 = calibrated or spec.precision == "int8_dynamic"
    if in_int8 and model.int8_is_a_guess(calibrated=calibrated):
        needed = "calibration and evaluation data" if calibrated else "evaluation data"
        return (
            f"INT8 of trained weights is recommended on real inputs only: give {needed}, or set "
            "accuracy.int8_on_generated_data"
        )
    lacking = hardware.lacks(spec.runtime, spec.precision)
    if lacking is None and not hardware.gpus:
        return processor_lacks(spec.runtime, spec.precision, cpu_flags())
    return lacking


def _require_one_artifact_each(models: Sequence[ModelSpec], gated: Sequence[GatedArtifact]) -> None:
    for model in models:
        own = [result for result in gated if result.spec.model == model.name]
        if all(result.dropped is not None for result in own):
            reasons = "\n".join(f"  {r.spec.label}: {r.dropped}" for r in own)
            raise EverythingFailedError(f"no artefact of the space can be served:\n{reasons}")


def _plan(spec: ArtifactSpec, model: ModelSpec, space: SearchSpace) -> GatePlan:
    plan = GatePlan.of(space.use_of(spec), model.payloads, space.limits.request_size)
    return replace(plan, max_batch_sizes=(1,)) if model.payloads.one_at_a_time else plan


def _without_batches(model: ModelSpec, reason: str, space: SearchSpace) -> ModelSpec:
    size = space.limits.request_size
    if size > 1:
        raise UsageError(
            f"traffic.batch_size must be 1, got {size}: model {model.name} is served without "
            f"batches: {reason}"
        )
    return replace(model, payloads=replace(model.payloads, one_at_a_time=True))


def _made_from_graph(spec: ArtifactSpec) -> bool:
    return bool(RUNTIMES[spec.runtime].graphs)
