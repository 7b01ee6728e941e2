"""What Triton is asked to serve: one point of the search, as frozen values.

Pure: no clock, no files, no processes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from optimizer.runtimes import Runtime
from optimizer.runtimes.spec import Kind, Precision

PRECISION_RANK: dict[Precision, int] = {"int8": 0, "bf16": 1, "fp16": 2, "fp32": 3}
"""Higher keeps more of the reference's accuracy; used to break ties of equal cost."""


@dataclass(frozen=True)
class EngineProfile:
    """Batch sizes that an engine takes, from 1 up; lengths are those of the model's requests.

    Attributes:
        optimal_batch_size: for which kernels are chosen.
    """

    optimal_batch_size: int
    max_batch_size: int


@dataclass(frozen=True)
class ArtifactSpec:
    """Which model file is needed.

    Attributes:
        model: name of the model, as in the space file.
        runtime: library that executes the graph.
        backend: Triton backend that hosts it; "python" hosts a runtime in model.py.
        precision: number format of weights and arithmetic.
        profile: optimisation profile of an ahead-of-time engine, None where the runtime needs none.
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
        """Short name for people: "bert/openvino/int8", "bert/tensorrt/fp16/batch 8..32"."""
        name = f"{self.model}/{self.runtime}/{self.precision}"
        if self.profile is None:
            return name
        return f"{name}/batch {self.profile.optimal_batch_size}..{self.profile.max_batch_size}"


@dataclass(frozen=True)
class Batching:
    """Triton's dynamic batcher. Empty `preferred_batch_sizes` means [max_batch_size] to Triton."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0


@dataclass(frozen=True)
class InstanceGroup:
    """`count` copies of the model, on a GPU on each of `logical_gpus`.

    These are positions in the slot, never physical devices.

    Attributes:
        threads: intra-op threads of each instance.
    """

    kind: Kind = "KIND_CPU"
    count: int = 1
    logical_gpus: tuple[int, ...] = ()
    threads: int = 1


@dataclass(frozen=True)
class ModelServing:
    """How one model is served.

    Attributes:
        max_batch_size: largest batch the server may execute; 1 where `batching` is None.
        batching: None runs every request alone.
        padding: lengths (tokens) a request is padded up to, ascending; the shortest that holds it
            is taken. Empty means the longest length of the workload.
        warmup_batch_sizes: batches executed once per instance while the model loads.
        cuda_graphs: launch an engine's kernels as one recorded graph; TensorRT only.
        rate_limited: every execution takes one of `ServerOptions.executions_per_device`.
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
        """Instances on the device that has the most of them."""
        return max(group.count for group in self.groups)

    @property
    def instance_count(self) -> int:
        """Instances over all groups."""
        return sum(group.count * max(1, len(group.logical_gpus)) for group in self.groups)


@dataclass(frozen=True)
class ArtifactUse:
    """How the configurations of a space serve one artefact.

    Attributes:
        max_batch_sizes: the largest batches that the server may execute, ascending.
        paddings: see `ModelServing.padding`.
    """

    max_batch_sizes: tuple[int, ...]
    paddings: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ServerOptions:
    """Command-line options of the server; a change of these restarts it.

    Attributes:
        backend_config: (backend, setting, value) triples for --backend-config.
        executions_per_device: how many instances of all rate-limited models may execute at once
            on a device; None leaves Triton's rate limiter off.
    """

    backend_config: tuple[tuple[str, str, str], ...] = ()
    executions_per_device: int | None = None


@dataclass(frozen=True)
class ServingConfig:
    """One point of the search: the models, how they are joined, and the server's options."""

    models: tuple[ModelServing, ...]
    graph: str | None = None
    server: ServerOptions = field(default_factory=ServerOptions)

    @property
    def digest(self) -> str:
        """Name of the measurements of this configuration: 16 hex digits of its content."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(config: ServingConfig) -> str:
    """One line for people, such as "openvino int8, batch <= 16, delay 100 us, 2 x 1 threads"."""
    several = len(config.models) > 1
    parts = [
        f"{model.name}: {describe_model(model)}" if several else describe_model(model)
        for model in config.models
    ]
    text = "; ".join(parts)
    for backend, setting, value in config.server.backend_config:
        text += f", {backend} {setting} {value}"
    if config.server.executions_per_device is not None:
        text += f", {config.server.executions_per_device} executing at once"
    return text


def describe_model(model: ModelServing) -> str:
    """How one model is served, for people."""
    parts = [f"{model.artifact.runtime} {model.artifact.precision}"]
    if model.batching is None:
        parts.append("no batching")
    else:
        preferred = model.batching.preferred_batch_sizes
        parts.append(f"batch <= {model.max_batch_size}")
        if preferred:
            parts.append("preferred " + "/".join(map(str, preferred)))
        parts.append(f"delay {model.batching.max_queue_delay_us} us")
    parts += map(_describe_group, model.groups)
    if model.cuda_graphs:
        parts.append("CUDA graphs")
    if model.padding:
        parts.append("padded to " + "/".join(map(str, model.padding)))
    parts += (f"{path} {text}" for path, text in model.parameters)
    return ", ".join(parts)


def _describe_group(group: InstanceGroup) -> str:
    if group.kind == "KIND_GPU":
        return f"{group.count} on GPU {'/'.join(map(str, group.logical_gpus))}"
    return f"{group.count} x {group.threads} thread{'s' if group.threads != 1 else ''}"
