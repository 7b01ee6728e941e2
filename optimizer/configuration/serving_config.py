"""Serving configurations: what Triton is to serve, as frozen values. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from optimizer.configuration.model_graph import NO_GRAPH, ModelGraph
from optimizer.configuration.runtimes import Runtime
from optimizer.configuration.runtimes.spec import Kind, Precision

PRECISION_RANK: dict[Precision, int] = {
    "int8_attention": 0,
    "int8": 1,
    "int8_dynamic": 2,
    "bf16": 3,
    "fp16": 4,
    "fp32": 5,
    "as_deployed": 6,
}
"""A higher rank keeps more of the reference's accuracy; it breaks ties of equal cost."""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Batch sizes of a TensorRT engine, from 1 to `max_batch_size`.

    Attributes:
        optimal_batch_size: batch size for which TensorRT chooses kernels.
    """

    optimal_batch_size: int
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """The model file that a configuration needs.

    Attributes:
        model: name of the model in the space file.
        runtime: library that executes the graph.
        backend: Triton backend that hosts the runtime; "python" hosts it in model.py.
        precision: number format of weights and arithmetic.
        profile: batch sizes of a TensorRT engine; None for other runtimes.
        options: further build options as sorted (name, value) pairs.
    """

    model: str
    runtime: Runtime
    backend: str
    precision: Precision
    profile: EngineProfile | None = None
    options: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """Short name, such as "bert/openvino/int8" or "bert/tensorrt/fp16/batch 8..32"."""
        name = f"{self.model}/{self.runtime}/{self.precision}"
        if self.profile is None:
            return name
        return f"{name}/batch {self.profile.optimal_batch_size}..{self.profile.max_batch_size}"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Triton's default_queue_policy; 0 means no bound, as in Triton.

    Attributes:
        max_queue_size: requests that may wait for the batcher; further ones are rejected.
        timeout_us: how long a request may wait.
        timeout_action: reject a request that has waited longer, or serve it after all others.
    """

    max_queue_size: int = 0
    timeout_us: int = 0
    timeout_action: Literal["reject", "delay"] = "reject"

    @property
    def bounds(self) -> bool:
        """Whether there is any bound; Triton then prepares no batches ahead."""
        return self.max_queue_size > 0 or self.timeout_us > 0


NO_QUEUE_POLICY = QueuePolicy()


@dataclass(frozen=True, slots=True)
class Batching:
    """Triton's dynamic batcher, which reads no preferred batch sizes as [max_batch_size]."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    queue_policy: QueuePolicy = NO_QUEUE_POLICY


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """An instance group of Triton.

    Attributes:
        count: instances on the CPU, or on each of the GPUs.
        logical_gpus: positions of GPUs in the slot, never physical devices.
        threads: intra-op threads of each instance.
    """

    kind: Kind = "KIND_CPU"
    count: int = 1
    logical_gpus: tuple[int, ...] = ()
    threads: int = 1


@dataclass(frozen=True, slots=True)
class ModelServing:
    """How one model is served.

    Attributes:
        max_batch_size: largest batch that the server may execute; that of one request without
            batching.
        batching: dynamic batcher; None executes every request alone.
        padding: lengths in tokens to which requests are padded, ascending: each to the shortest
            that holds it. Empty pads all to the longest length of the workload.
        cache: whether the server's response cache answers.
        warmup_batch_sizes: batches that each instance executes while the model loads.
        cuda_graphs: whether a TensorRT engine's kernels are launched as one recorded graph.
        rate_limited: whether executions count for `ServerOptions.executions_per_device`.
        parameters: further fields of config.pbtxt as sorted pairs of path and JSON value, such as
            ("optimization.input_pinned_memory.enable", "false").
    """

    name: str
    artifact: ArtifactSpec
    max_batch_size: int = 1
    batching: Batching | None = None
    groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    padding: tuple[int, ...] = ()
    cache: bool = False
    warmup_batch_sizes: tuple[int, ...] = ()
    cuda_graphs: bool = False
    rate_limited: bool = False
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def most_instances(self) -> int:
        """Largest number of instances on a device."""
        return max(group.count for group in self.groups)

    @property
    def instance_count(self) -> int:
        """Number of instances on all devices."""
        return sum(group.count * max(1, len(group.logical_gpus)) for group in self.groups)


@dataclass(frozen=True, slots=True)
class ArtifactUse:
    """How the configurations of a space serve one artefact.

    Attributes:
        max_batch_sizes: values of `ModelServing.max_batch_size`, ascending.
        paddings: values of `ModelServing.padding`.
        most_instances: on a device.
        cuda_graphs: whether one of them records CUDA graphs.
    """

    max_batch_sizes: tuple[int, ...]
    paddings: tuple[tuple[int, ...], ...]
    most_instances: int = 1
    cuda_graphs: bool = False


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Command-line options of the server; a change of these restarts it.

    Attributes:
        backend_config: (backend, setting, value) triples for --backend-config.
        executions_per_device: simultaneous executions of all rate-limited models on a device;
            None leaves Triton's rate limiter off.
        cache_bytes: size of the response cache; None where no model uses one.
        client_shared_memory: whether clients on the same machine may pass tensors in system shared
            memory.
    """

    backend_config: tuple[tuple[str, str, str], ...] = ()
    executions_per_device: int | None = None
    cache_bytes: int | None = None
    client_shared_memory: bool = False


_NO_OPTIONS = ServerOptions()
_ADDED_OPTIONS = ("cache_bytes", "client_shared_memory")
"""Options that digests of earlier versions lack."""


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """One point of the search: the models, the graph that joins them, and the server's options.

    Attributes:
        models: in the order in which they are written: each after its steps.
        graph: the composed models among the models; None without any.
    """

    models: tuple[ModelServing, ...]
    graph: ModelGraph | None = None
    server: ServerOptions = field(default_factory=ServerOptions)

    @property
    def targets(self) -> tuple[ModelServing, ...]:
        """The models that clients send requests to: all but steps."""
        steps = (self.graph or NO_GRAPH).step_names
        return tuple(model for model in self.models if model.name not in steps)

    def part(self, target: str) -> ServingConfig:
        """Return the configuration of one model and of the steps that it is composed of."""
        graph = self.graph or NO_GRAPH
        names = graph.below(target) | {target}
        own = tuple(each for each in graph.composed if each.name in names)
        return replace(
            self,
            models=tuple(model for model in self.models if model.name in names),
            graph=ModelGraph(own) if own else None,
        )

    @property
    def digest(self) -> str:
        """Name of the configuration's measurements: 16 hex digits of its content."""
        content = asdict(self)
        for name in _ADDED_OPTIONS:
            if getattr(self.server, name) == getattr(_NO_OPTIONS, name):
                del content["server"][name]
        for model, written in zip(self.models, content["models"], strict=True):
            if model.batching is not None and model.batching.queue_policy == NO_QUEUE_POLICY:
                # Digests of earlier versions lack it.
                del written["batching"]["queue_policy"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(config: ServingConfig) -> str:
    """Describe a configuration in one line.

    Such as "openvino int8, max_batch_size 16, queue delay 100 us, 2 x 1 thread".
    """
    graph, several = config.graph or NO_GRAPH, len(config.models) > 1
    parts = {
        model.name: _options(model)
        if model.name in graph.ensemble_names
        else [describe_model(model, generated=_is_generated_bls(model.name, config))]
        for model in config.models
    }
    text = "; ".join(
        f"{name}: {', '.join(own)}" if several else own[0] for name, own in parts.items() if own
    )
    for backend, setting, value in config.server.backend_config:
        text += f", {backend} {setting} {value}"
    if config.server.executions_per_device is not None:
        text += f", {config.server.executions_per_device} executing at once"
    if config.server.cache_bytes is not None:
        text += f", cache size {config.server.cache_bytes / 2**20:g} MiB"
    return text


def _is_generated_bls(name: str, config: ServingConfig) -> bool:
    """Return whether a model is a BLS model that was made here to join steps.

    One of a repository calls models of the same repository.
    """
    graph = config.graph or NO_GRAPH
    steps = {step.model for step in graph.steps_of(name)} - {*graph.names}
    return name not in graph.ensemble_names and any(
        model.name in steps and model.artifact.runtime != "repository" for model in config.models
    )


def describe_model(model: ModelServing, *, generated: bool = False) -> str:
    """Describe how one model is served.

    Args:
        generated: whether it is a BLS model that was made here, which no one has deployed.
    """
    as_deployed = model.artifact.precision == "as_deployed"
    parts = ["BLS model" if generated else _describe_artifact(model.artifact)]
    if model.batching is None:
        parts.append("no batching")
    else:
        preferred = model.batching.preferred_batch_sizes
        parts.append(f"max_batch_size {model.max_batch_size}")
        if preferred:
            parts.append("preferred " + "/".join(map(str, preferred)))
        parts.append(f"queue delay {model.batching.max_queue_delay_us} us")
        parts += _describe_policy(model.batching.queue_policy)
    if as_deployed:
        parts.append(f"{model.most_instances} instance{'s' if model.most_instances != 1 else ''}")
    else:
        parts += map(_describe_group, model.groups)
    if model.cuda_graphs:
        parts.append("CUDA graphs")
    if model.padding:
        parts.append("padded to " + "/".join(map(str, model.padding)))
    parts += _options(model)
    return ", ".join(parts)


def _describe_artifact(artifact: ArtifactSpec) -> str:
    if artifact.runtime == "repository":
        return "as deployed"
    if artifact.precision == "as_deployed":
        return artifact.runtime
    return f"{artifact.runtime} {artifact.precision}"


def _describe_policy(policy: QueuePolicy) -> list[str]:
    size, timeout = policy.max_queue_size, policy.timeout_us
    return [
        *([f"max_queue_size {size}"] if size else []),
        *([f"queue timeout {timeout} us ({policy.timeout_action})"] if timeout else []),
    ]


def _options(model: ModelServing) -> list[str]:
    cache = ["response_cache"] if model.cache else []
    return [*cache, *(f"{path} {text}" for path, text in model.parameters)]


def _describe_group(group: InstanceGroup) -> str:
    if group.kind == "KIND_GPU":
        return f"{group.count} on GPU {'/'.join(map(str, group.logical_gpus))}"
    return f"{group.count} x {group.threads} thread{'s' if group.threads != 1 else ''}"
