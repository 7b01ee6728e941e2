"""A server in production: all values that the files of a platform contain.

They describe the hardware of the machine that measured, and nothing else of it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.serving_config import ModelServing, ServingConfig, describe
from optimizer.measurement.cost import OWNED, Candidate, Demand, Price, replicas_for
from optimizer.measurement.level import LoadLevel, ServerSplit
from optimizer.triton.server_options import option_flags
from optimizer.workload.data_types import DataType
from optimizer.workload.streams import LatencyLimit, Payloads, Workload

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
"""Triton's own defaults."""

GROWTH = 2
"""The most instances of autoscaling, relative to those for the demand, which are the fewest."""

_CLOUD_TYPE = re.compile(
    r"(?:ml\.)?([a-z]+\d[a-z0-9-]*\.(?:nano|micro|small|medium|\d*x?large|metal(?:-\w+)?))"
)
"""Names of EC2's instance types, and SageMaker's with the prefix `ml.`."""

_MAX_NAME_LENGTH = 40
"""Platforms and releases append to it, up to 63 characters."""


@dataclass(frozen=True)
class ServerImage:
    """Base and packages of the server's image.

    Attributes:
        base: image with tritonserver, or with Python where tritonserver is one of `packages`.
        packages: pip requirements, among them the models' runtimes.
        carries_server: whether `base` contains tritonserver.
        python: version of the interpreter in `base`, such as "3.11"; empty if it does not matter.
        shared_memory_mib: for the exchange between the server and models in Python.
    """

    base: str
    packages: tuple[str, ...]
    carries_server: bool
    python: str
    shared_memory_mib: int = 1024


def embedded_image(packages: Sequence[str], server_package: str, python: str) -> ServerImage:
    """Return an image for a tritonserver from a Python package, with the Python of the measurement.

    Args:
        server_package: pip requirement of the package that contains tritonserver.
        python: such as "3.11".
    """
    base = f"python:{python}-slim-bookworm"
    return ServerImage(base, (server_package, *packages), carries_server=False, python=python)


def container_image(
    image: str, packages: Sequence[str], shared_memory_bytes: int | None = None
) -> ServerImage:
    """Return the measured image with the packages that the models' runtimes need."""
    extended = ServerImage(image, tuple(packages), carries_server=True, python="")
    if shared_memory_bytes is None:
        return extended
    return replace(extended, shared_memory_mib=math.ceil(shared_memory_bytes / 2**20))


@dataclass(frozen=True)
class Input:
    """An input tensor of the longest measured request.

    Attributes:
        shape: of one inference, batch dimension included.
        value: a valid value for its elements; text for BYTES.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    value: bool | int | float | str


@dataclass(frozen=True)
class MeasuredModel:
    """A model, and its figures on one instance of the server at the capacity.

    Attributes:
        requests_per_second: share of the lower bound of the capacity.
        limit: the strictest of its streams.
        latency_ms: at the limit's percentile, measured by the client.
        queue_ms: mean, from Triton's statistics; None without them.
        batch_size: mean inferences per execution; None without Triton's statistics.
        largest_batch: most inferences of an execution.
        queue_delay_ms: longest time that a request waits for its batch to fill.
        inputs: tensors of a request.
        step: whether its requests come from a pipeline, whose limit and latency it has.
    """

    name: str
    requests_per_second: float
    limit: LatencyLimit
    latency_ms: float
    queue_ms: float | None
    batch_size: float | None
    largest_batch: int
    queue_delay_ms: float
    inputs: tuple[Input, ...]
    step: bool = False


@dataclass(frozen=True)
class Resources:
    """Resources that one instance of the server used at its capacity; None where unknown.

    Attributes:
        cores: mean.
        memory_mib: of the server and its models.
    """

    cores: float | None
    memory_mib: float | None
    gpus: int


@dataclass(frozen=True)
class Deployment:
    """A server in production.

    Attributes:
        name: valid for resources of Kubernetes and of SageMaker.
        flags: of tritonserver in the measurement, without ports and repository.
        models: that clients send requests to.
        steps: of pipelines among these.
        capacity_per_second: lower bound for one instance, over all models.
        protocol: of the measurement.
        load_seconds: time that the models took to load; None where unknown.
        measured_on: hardware of the measurement; None where unknown.
    """

    name: str
    description: str
    image: ServerImage
    flags: tuple[str, ...]
    models: tuple[MeasuredModel, ...]
    resources: Resources
    price: Price
    demand: Demand
    capacity_per_second: float
    protocol: Literal["grpc", "http"] = "grpc"
    load_seconds: float | None = None
    measured_on: str | None = None
    steps: tuple[MeasuredModel, ...] = ()

    @property
    def watched(self) -> tuple[MeasuredModel, ...]:
        """The models whose live figures are compared with the measured ones."""
        return self.models + self.steps

    @property
    def replicas(self) -> int:
        """Instances for the demand with its headroom."""
        return replicas_for(self.demand, self.capacity_per_second)

    @property
    def most_replicas(self) -> int:
        """Upper bound of autoscaling."""
        return GROWTH * self.replicas

    @property
    def target_per_second(self) -> float:
        """Target of autoscaling, in requests/s per instance: the capacity less the headroom."""
        return self.capacity_per_second / (1 + self.demand.headroom)

    @property
    def node_type(self) -> str | None:
        """The priced instance type as EC2 labels nodes; None for a type that is not EC2's."""
        match = _CLOUD_TYPE.fullmatch(self.price.instance_type)
        return match[1] if match is not None and self.price.rate != OWNED else None

    @property
    def summary(self) -> str:
        """One line for the head of files; the priced instance type need not be the measured one."""
        measured = f", measured on {self.measured_on}" if self.measured_on is not None else ""
        return (
            f"{self.description}: {self.capacity_per_second:.4g} requests/s per instance{measured};"
            f" {self.replicas} x {self.price.instance_type} (the priced type) for"
            f" {self.demand.requests_per_second:.4g} requests/s"
        )


def deployment_of(
    study: str,
    candidate: Candidate,
    workload: Workload,
    demand: Demand,
    price: Price,
    image: ServerImage,
    load_seconds: float | None = None,
) -> Deployment:
    """Return the deployment of a measured configuration.

    Args:
        candidate: its load factors are relative to `workload`.

    Raises:
        ValueError: where it met the limits at no load.
    """
    config, measurement = candidate.config, candidate.measurement
    level = measurement.nearest_level
    if level is None or measurement.capacity_low_per_second <= 0:
        raise ValueError("the limits were met at no load")
    measured = [
        _measured(model, workload, measurement.load_factor_low, level) for model in config.models
    ]
    models = tuple(model for model in measured if model is not None)
    return Deployment(
        name=resource_name(study),
        description=describe(config),
        image=image,
        flags=("--disable-auto-complete-config", *option_flags(config.server)),
        models=models,
        resources=_resources(config, level),
        price=price,
        demand=demand,
        capacity_per_second=measurement.capacity_low_per_second,
        protocol=workload.transport.protocol,
        load_seconds=load_seconds,
        steps=tuple(step for model in models for step in _steps(model, config, level)),
    )


def _measured(
    model: ModelServing, workload: Workload, load_factor: float, level: LoadLevel
) -> MeasuredModel | None:
    """Return a model's figures; None for a model without requests."""
    own = [stream for stream in workload.streams if stream.target == model.name]
    if not own:
        return None

    strictest = min(own, key=lambda stream: stream.limit.latency_ms)
    measured = next(each for each in level.streams if each.name == strictest.name)
    # An ensemble has no batcher: its requests wait in the queues of its steps.
    executed = (each for each in level.executed if each.model == model.name)
    return _with_server_figures(
        MeasuredModel(
            name=model.name,
            requests_per_second=load_factor * sum(stream.demand_per_second for stream in own),
            limit=strictest.limit,
            latency_ms=measured.latency_ms(measured.limit_percentile),
            queue_ms=None,
            batch_size=None,
            largest_batch=model.max_batch_size,
            queue_delay_ms=model.batching.max_queue_delay_us / 1000 if model.batching else 0.0,
            inputs=longest_inputs(strictest.payloads),
        ),
        next(executed, None),
    )


def _steps(top: MeasuredModel, config: ServingConfig, level: LoadLevel) -> Iterator[MeasuredModel]:
    """Yield the models that execute the requests to a pipeline; none for another model."""
    below = (config.graph or NO_GRAPH).below(top.name)
    splits = {split.model: split for split in level.server}
    for model in config.models:
        split = splits.get(model.name)
        if model.name not in below or split is None or split.ensemble or not split.requests:
            continue
        calls = split.requests / splits[top.name].requests
        step = replace(
            top,
            name=model.name,
            requests_per_second=calls * top.requests_per_second,
            largest_batch=model.max_batch_size,
            queue_delay_ms=model.batching.max_queue_delay_us / 1000 if model.batching else 0.0,
            inputs=(),
            step=True,
        )
        yield _with_server_figures(step, split)


def _with_server_figures(model: MeasuredModel, split: ServerSplit | None) -> MeasuredModel:
    """Return a model with Triton's own figures of it."""
    if split is None:
        return model
    batch_size = split.inferences / split.executions if split.executions else None
    return replace(model, queue_ms=split.queue_ms, batch_size=batch_size)


def longest_inputs(payloads: Payloads) -> tuple[Input, ...]:
    """Return the input tensors of the longest request."""
    sizes, batch = payloads.largest_sizes(), (1,) if payloads.batched else ()
    return tuple(
        Input(spec.name, spec.data_type, (*batch, *spec.sized(sizes)), spec.example)
        for spec in payloads.tensors
    )


def _resources(config: ServingConfig, level: LoadLevel) -> Resources:
    used = level.machine
    seconds = used.server_cpu_seconds if used is not None else None
    gpus = [gpu for model in config.models for group in model.groups for gpu in group.logical_gpus]
    return Resources(
        cores=seconds / used.seconds if used is not None and seconds is not None else None,
        memory_mib=used.server_memory_mib if used is not None else None,
        gpus=max(gpus, default=-1) + 1,
    )


def resource_name(study: str) -> str:
    """Return a name of letters, digits and hyphens, as Kubernetes and SageMaker need.

    A changed name ends with a digest of the study's name, so that the deployments of two studies
    never share a name.
    """
    name = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    name = name if name[:1].isalpha() else f"triton-{name}".strip("-")
    if name == study and len(name) <= _MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(study.encode()).hexdigest()[:6]
    return f"{name[: _MAX_NAME_LENGTH - 7].strip('-')}-{digest}"


def metrics_flags(deployment: Deployment) -> list[str]:
    """Return flags that make Triton report the percentiles of the limits."""
    shares = sorted({model.limit.percentile / 100 for model in deployment.models})
    quantiles = ",".join(f"{share:g}:{(1 - share) / 10:.2g}" for share in (0.5, *shares))
    return [
        "--metrics-config=summary_latencies=true",
        f"--metrics-config=summary_quantiles={quantiles}",
    ]


def startup_seconds(deployment: Deployment) -> int:
    """Return the time limit of a start: several times the measured load time, at least a minute."""
    return max(60, math.ceil(5 * (deployment.load_seconds or 60)))
