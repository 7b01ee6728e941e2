"""What is put into production, and what was measured of it. Pure values.

Everything that a platform's files say comes from here: none of it names the machine that measured
by more than its hardware.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optimizer.configuration.serving_config import ModelServing, ServingConfig, describe
from optimizer.measurement.cost import OWNED, Candidate, Demand, Price, replicas_for
from optimizer.measurement.level import LoadLevel
from optimizer.triton.server_options import option_flags
from optimizer.workload.streams import DataType, LatencyLimit, Payloads, Stream, Workload

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
"""Triton's own defaults."""

GROWTH = 2
"""Instances at most, relative to those for the demand; the least are those for the demand."""

_CLOUD_TYPE = re.compile(
    r"(?:ml\.)?([a-z]+\d[a-z0-9-]*\.(?:nano|micro|small|medium|\d*x?large|metal(?:-\w+)?))"
)
"""EC2's names of instance types, which SageMaker's have behind `ml.`."""

_LONGEST_NAME = 40
"""Leaves room for what platforms and releases put behind it, up to 63."""


@dataclass(frozen=True)
class ServerImage:
    """What the image of the server is made from.

    Attributes:
        base: that holds tritonserver, or Python where `packages` do.
        packages: requirements of pip, of the models' runtimes.
        carries_server: whether `base` holds tritonserver.
        python: "3.11": of the interpreter in `base`, where that matters.
        shared_memory_mib: through which the server talks to models in Python.
    """

    base: str
    packages: tuple[str, ...]
    carries_server: bool
    python: str
    shared_memory_mib: int = 1024


def embedded_image(packages: Sequence[str], server_package: str, python: str) -> ServerImage:
    """The server of a Python package: in production on the same Python that it was measured on.

    Args:
        server_package: requirement of pip, of the package that holds tritonserver.
        python: "3.11".
    """
    base = f"python:{python}-slim-bookworm"
    return ServerImage(base, (server_package, *packages), carries_server=False, python=python)


def container_image(
    image: str, packages: Sequence[str], shared_memory_bytes: int | None = None
) -> ServerImage:
    """The image that was measured, and what the models' runtimes need beside it."""
    found = ServerImage(image, tuple(packages), carries_server=True, python="")
    if shared_memory_bytes is None:
        return found
    return replace(found, shared_memory_mib=math.ceil(shared_memory_bytes / 2**20))


@dataclass(frozen=True)
class Input:
    """A tensor of the longest request that was measured.

    Attributes:
        shape: with the batch, of one inference.
        value: that its elements may have.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class MeasuredModel:
    """A model and what one instance of the server makes of it at its capacity.

    Attributes:
        requests_per_second: the model's share of the capacity's lower bound.
        limit: the shortest of its streams'.
        latency_ms: measured at the limit's percentile, by the client.
        queue_ms: mean, by Triton's statistics; None where they were not seen.
        batch_size: mean inferences of an execution; None where they were not seen.
        largest_batch: inferences that an execution has at most.
        queue_delay_ms: that a request waits at most for others to fill its batch.
        inputs: what a request consists of.
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


@dataclass(frozen=True)
class Resources:
    """What one instance of the server used at its capacity.

    Attributes:
        cores: on average; None where unseen.
        memory_mib: of the server and its models; None where unseen.
    """

    cores: float | None
    memory_mib: float | None
    gpus: int


@dataclass(frozen=True)
class Deployment:
    """A server in production.

    Attributes:
        name: fit for resources of Kubernetes and of SageMaker.
        flags: of tritonserver, as in the measurement, without ports and repository.
        capacity_per_second: lower bound for one instance, over all models.
        protocol: that was measured.
        load_seconds: that the models took to load; None where unseen.
        measured_on: hardware of the machine that measured; None where it is not known.
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

    @property
    def replicas(self) -> int:
        """Instances that serve the demand with its headroom."""
        return replicas_for(self.demand, self.capacity_per_second)

    @property
    def most_replicas(self) -> int:
        """Instances that autoscaling may come to."""
        return GROWTH * self.replicas

    @property
    def target_per_second(self) -> float:
        """Requests a second of an instance that autoscaling aims at: capacity less headroom."""
        return self.capacity_per_second / (1 + self.demand.headroom)

    @property
    def node_type(self) -> str | None:
        """The price's type as nodes of EC2 are labelled; None for what no node may be called."""
        found = _CLOUD_TYPE.fullmatch(self.price.instance_type)
        return found[1] if found is not None and self.price.rate != OWNED else None

    @property
    def summary(self) -> str:
        """One line for the head of a file: the price names a type that need not have measured."""
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
    """A configuration that was measured, for production.

    Args:
        candidate: whose load factors are relative to `workload`.

    Raises:
        ValueError: where it served nothing within the limits.
    """
    config, measurement = candidate.config, candidate.measurement
    level = measurement.nearest_level
    if level is None or measurement.capacity_low_per_second <= 0:
        raise ValueError("nothing was served within the limits")
    models = [
        _measured(model, workload, measurement.load_factor_low, level) for model in config.models
    ]
    return Deployment(
        name=resource_name(study),
        description=describe(config),
        image=image,
        flags=("--disable-auto-complete-config", *option_flags(config.server)),
        models=tuple(model for model in models if model is not None),
        resources=_resources(config, level),
        price=price,
        demand=demand,
        capacity_per_second=measurement.capacity_low_per_second,
        protocol=workload.transport.protocol,
        load_seconds=load_seconds,
    )


def _measured(
    model: ModelServing, workload: Workload, load_factor: float, level: LoadLevel
) -> MeasuredModel | None:
    """None for a model that no request is for."""
    own = [stream for stream in workload.streams if stream.target == model.name]
    if not own:
        return None

    def limit_ms(stream: Stream) -> float:
        return stream.limit.latency_ms

    strictest = min(own, key=limit_ms)
    measured = next(each for each in level.streams if each.name == strictest.name)
    split = next((each for each in level.server if each.model == model.name), None)
    return MeasuredModel(
        name=model.name,
        requests_per_second=load_factor * sum(stream.demand_per_second for stream in own),
        limit=strictest.limit,
        latency_ms=measured.latency_ms(measured.limit_percentile),
        queue_ms=split.queue_ms if split is not None else None,
        batch_size=split.inferences / split.executions if split and split.executions else None,
        largest_batch=model.max_batch_size,
        queue_delay_ms=model.batching.max_queue_delay_us / 1000 if model.batching else 0.0,
        inputs=longest_inputs(strictest.payloads),
    )


def longest_inputs(payloads: Payloads) -> tuple[Input, ...]:
    """Return the tensors of the longest request."""
    longest = payloads.lengths.longest
    return tuple(
        Input(
            spec.name,
            spec.data_type,
            (1, *(longest if size is None else size for size in spec.shape)),
            spec.minimum,
        )
        for spec in payloads.tensors
    )


def _resources(config: ServingConfig, level: LoadLevel) -> Resources:
    used = level.machine
    seconds = used.server_cpu_seconds if used is not None else None
    positions = [n for m in config.models for group in m.groups for n in group.logical_gpus]
    return Resources(
        cores=seconds / used.seconds if used is not None and seconds is not None else None,
        memory_mib=used.server_memory_mib if used is not None else None,
        gpus=max(positions, default=-1) + 1,
    )


def resource_name(study: str) -> str:
    """A name that Kubernetes and SageMaker take: letters, digits and hyphens, a letter first.

    A study whose name is another gets a digest of it, so that no two studies come to one name and
    overwrite each other.
    """
    name = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    name = name if name[:1].isalpha() else f"triton-{name}".strip("-")
    if name == study and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(study.encode()).hexdigest()[:6]
    return f"{name[: _LONGEST_NAME - 7].strip('-')}-{digest}"


def metrics_flags(deployment: Deployment) -> list[str]:
    """Flags that have Triton show the percentiles that limits are for; it shows none by itself."""
    shares = sorted({model.limit.percentile / 100 for model in deployment.models})
    quantiles = ",".join(f"{share:g}:{(1 - share) / 10:.2g}" for share in (0.5, *shares))
    return [
        "--metrics-config=summary_latencies=true",
        f"--metrics-config=summary_quantiles={quantiles}",
    ]


def startup_seconds(deployment: Deployment) -> int:
    """How long a start may take: loading may be slower than it was by far, and never cut short."""
    return max(60, math.ceil(5 * (deployment.load_seconds or 60)))
