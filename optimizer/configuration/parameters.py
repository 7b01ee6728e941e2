"""The table of parameters: everything that can be searched of one model. Pure.

`PARAMETERS` holds one entry for each parameter. From it follow the schema of space files, the
columns of a search space, the baseline, Optuna's distributions, the conversion to and from a
`ServingConfig`, the columns of reports, the comments of exported files and the features of the
surrogate.

A further field of Triton's config.pbtxt is one entry, made by `config_field`:

    config_field(
        "pinned_input_memory",
        "optimization.input_pinned_memory.enable",
        Allowed(switch=True),
        default=True,
        description="whether inputs are copied through pinned memory",
    )
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np

from optimizer.configuration.columns import Columns, Mask
from optimizer.configuration.parameter_definition import (
    Allowed,
    ModelScope,
    ParameterDefinition,
    ParameterEffect,
    Part,
    Served,
    ServingDraft,
    Value,
)
from optimizer.configuration.runtimes import RUNTIMES
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import (
    PRECISION_RANK,
    Batching,
    ModelServing,
)


def preferred_sizes(value: Value, max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes that a value of `preferred_batch_sizes` stands for.

    "none" leaves the choice to Triton, which takes [max_batch_size], so that list is none too;
    "half" prefers half of the largest batch; "powers" every power of two up to it.
    """
    sizes: tuple[int, ...] = ()
    if isinstance(value, tuple):
        sizes = value
    elif value == "half":
        sizes = (max_batch_size // 2,)
    elif value == "powers":
        sizes = tuple(2**n for n in range(1, int(math.log2(max_batch_size)) + 1))
    return () if sizes == (max_batch_size,) else sizes


_MIB = 2**20


def config_field(
    name: str, path: str, allowed: Allowed, default: Value, description: str, part: Part = "layout"
) -> ParameterDefinition:
    """Define a parameter that is one field of config.pbtxt and means nothing to other parameters.

    The field is written where the value is not the default, which is the server's own.

    Args:
        path: such as "optimization.input_pinned_memory.enable".
    """

    def put(draft: ServingDraft, value: Value) -> None:
        if value != default:
            draft.config_fields[path] = json.dumps(value)

    def read(served: Served) -> object:
        text = dict(served.model.parameters).get(path)
        return default if text is None else json.loads(text)

    return ParameterDefinition(name, part, allowed, default, description, put, read, fields=(path,))


def _store(attribute: str) -> Callable[[ServingDraft, Any], None]:
    return lambda draft, value: setattr(draft, attribute, value)


def _put_max_batch_size(draft: ServingDraft, value: int) -> None:
    draft.max_batch_size = draft.scope.request_size
    if value <= draft.max_batch_size:
        draft.batching = None
    if draft.batching is not None:
        draft.max_batch_size = value


def _put_preferred_sizes(draft: ServingDraft, value: Value) -> None:
    if draft.batching is not None:
        sizes = preferred_sizes(value, draft.max_batch_size)
        draft.batching = replace(draft.batching, preferred_batch_sizes=sizes)


def _put_queue_delay(draft: ServingDraft, value: int) -> None:
    if draft.batching is not None:
        draft.batching = replace(draft.batching, max_queue_delay_us=value)


def _queue_policy(
    name: str,
    allowed: Allowed,
    default: Value,
    description: str,
    attribute: str,
    effect: ParameterEffect,
) -> ParameterDefinition:
    """Define a parameter that is a field of Triton's default_queue_policy."""

    def put(draft: ServingDraft, value: Value) -> None:
        wanted = 0 if value == "off" else value
        # Most points have no policy, and a large space has many points.
        if draft.batching and getattr(draft.batching.queue_policy, attribute) != wanted:
            changed: dict[str, Any] = {attribute: wanted}
            policy = replace(draft.batching.queue_policy, **changed)
            draft.batching = replace(draft.batching, queue_policy=policy)

    def read(served: Served) -> object:
        batching = served.model.batching
        return (getattr(batching.queue_policy, attribute) or "off") if batching else None

    path = f"dynamic_batching.default_queue_policy.{name}"
    return ParameterDefinition(
        name, "queue", allowed, default, description, put, read, effect, fields=(path,)
    )


def _put_instance_count(draft: ServingDraft, value: Value) -> None:
    draft.instance_counts = draft.scope.instance_counts(value)


def _put_execution_policy(draft: ServingDraft, value: str) -> None:
    if draft.runtime == "tensorrt" and value == "blocking":
        draft.backend_config.append(("tensorrt", "execution-policy", "BLOCKING"))


def _put_cache_size(draft: ServingDraft, value: int) -> None:
    if draft.cache:
        draft.cache_bytes = value * _MIB


def _read_cache_size(served: Served) -> int | None:
    size = served.server.cache_bytes
    return size // _MIB if served.model.cache and size is not None else None


def _joined(sizes: Sequence[int]) -> str:
    return "/".join(map(str, sizes)) or "none"


def _read_instances(served: Served) -> int | str:
    """Read the instances on a CPU, or on each GPU where they differ: "2/1"."""
    groups = served.model.groups
    if groups[0].kind == "KIND_CPU":
        return groups[0].count
    counts = [sum(g.count for g in groups if gpu in g.logical_gpus) for gpu in range(served.gpus)]
    return counts[0] if len(set(counts)) == 1 else _joined(counts)


def _read_profile(served: Served) -> str | None:
    profile = served.model.artifact.profile
    return f"{profile.optimal_batch_size}..{profile.max_batch_size}" if profile else None


def _read_execution_policy(served: Served) -> str | None:
    if not _runs_engine(served.model):
        return None
    settings = {key: value for _, key, value in served.server.backend_config}
    return settings.get("execution-policy", "DEVICE_BLOCKING").lower()


def _runs_engine(model: ModelServing) -> bool:
    return model.artifact.runtime == "tensorrt"


def _merges(rows: Columns, scope: ModelScope) -> Mask:
    return _batches(rows, scope) & rows["batching"]


def _batches(rows: Columns, scope: ModelScope) -> Mask:
    return rows["max_batch_size"] > scope.request_size


def _limit_binds(rows: Columns, scope: ModelScope) -> Mask | bool:
    if not scope.alone:
        return True
    limits = zip(rows["rate_limit"], rows["instance_count"], strict=True)
    return np.array([limit != "off" and limit < count for limit, count in limits])


WITH_BATCHING = ParameterEffect(_merges, lambda model: model.batching is not None)
_WITH_CACHE = ParameterEffect(lambda rows, scope: rows["response_cache"], lambda model: model.cache)
_WITH_ENGINES = ParameterEffect(lambda rows, scope: rows["runtime"] == "tensorrt", _runs_engine)
_WITH_BATCHES_OF_ENGINES = ParameterEffect(
    lambda rows, scope: (rows["runtime"] == "tensorrt") & _merges(rows, scope),
    lambda model: _runs_engine(model) and model.batching is not None,
)
_WITH_QUEUE_TIMEOUT = ParameterEffect(
    lambda rows, scope: _merges(rows, scope) & (rows["default_timeout_microseconds"] != "off"),
    lambda model: model.batching is not None and model.batching.queue_policy.timeout_us > 0,
)
_WITH_CPU_INSTANCES = ParameterEffect(
    lambda rows, scope: scope.kind == "KIND_CPU",
    lambda model: model.groups[0].kind == "KIND_CPU",
)

PARAMETERS: tuple[ParameterDefinition, ...] = (
    ParameterDefinition(
        "runtime",
        "artifact",
        Allowed(words=tuple(RUNTIMES)),
        default="onnxruntime",
        description="library that executes the model; tensorrt only on GPUs",
        put=_store("runtime"),
        read=lambda served: served.model.artifact.runtime,
        baseline=lambda listed, cores: "pytorch",
        fields=("backend", "parameters.runtime"),
        triton_names=("backend", "platform"),
    ),
    ParameterDefinition(
        "precision",
        "artifact",
        Allowed(words=get_args(Precision)),
        default="fp32",
        description="precisions that a runtime does not support are left out",
        put=_store("precision"),
        read=lambda served: served.model.artifact.precision,
        baseline=lambda listed, cores: max(listed, key=lambda p: PRECISION_RANK[p]),
        fields=("parameters.precision",),
    ),
    ParameterDefinition(
        "batching",
        "batcher",
        Allowed(switch=True),
        default=False,
        description="whether Triton's dynamic batcher merges requests",
        put=lambda draft, value: setattr(draft, "batching", Batching() if value else None),
        read=lambda served: served.model.batching is not None,
        effect=ParameterEffect(_batches, lambda model: True),
        fields=("max_batch_size",),
        triton_names=("dynamic_batching",),
    ),
    ParameterDefinition(
        "max_batch_size",
        "batcher",
        Allowed(least=1),
        default=8,
        description="most inferences of one execution",
        put=_put_max_batch_size,
        read=lambda served: served.model.max_batch_size,
        effect=WITH_BATCHING,
        idle=lambda scope: scope.request_size,
        baseline=lambda listed, cores: 1,
        fields=("max_batch_size",),
    ),
    ParameterDefinition(
        "preferred_batch_sizes",
        "queue",
        Allowed(words=("none", "half", "powers"), lists="sizes"),
        default="none",
        description="none, half, powers (derived from max_batch_size), or sizes",
        put=_put_preferred_sizes,
        read=lambda served: (
            _joined(served.model.batching.preferred_batch_sizes) if served.model.batching else None
        ),
        effect=WITH_BATCHING,
        baseline=lambda listed, cores: listed[0],
        key="preferred_batch_size",
        fields=("dynamic_batching.preferred_batch_size",),
        meaning=lambda value, size, scope: preferred_sizes(value, size) or "none",
    ),
    ParameterDefinition(
        "max_queue_delay_us",
        "queue",
        Allowed(least=0),
        default=0,
        description="how long a request may wait for others to join it",
        put=_put_queue_delay,
        read=lambda served: (
            served.model.batching.max_queue_delay_us if served.model.batching else None
        ),
        effect=WITH_BATCHING,
        key="max_queue_delay_microseconds",
        fields=("dynamic_batching.max_queue_delay_microseconds",),
    ),
    ParameterDefinition(
        "instance_count",
        "layout",
        Allowed(least=1, lists="devices"),
        default=1,
        description="number of instances on the CPU, or on every GPU; a list has one number"
        " for each GPU",
        put=_put_instance_count,
        read=_read_instances,
        fields=("instance_group.count",),
        triton_names=("count", "instance_group", "instance_groups"),
        meaning=lambda value, size, scope: scope.instance_counts(value),
        number=lambda value: max(value) if isinstance(value, tuple) else cast(int, value),
    ),
    ParameterDefinition(
        "intra_op_threads",
        "layout",
        Allowed(least=1),
        default=1,
        description="threads of each instance on the CPU",
        put=_store("threads"),
        read=lambda served: (
            served.model.groups[0].threads if served.model.groups[0].kind == "KIND_CPU" else None
        ),
        effect=_WITH_CPU_INSTANCES,
        baseline=lambda listed, cores: cores,
        fields=("instance_group", "parameters.intra_op_threads"),
        triton_names=("intra_op_thread_count",),
    ),
    ParameterDefinition(
        "padding",
        "artifact",
        Allowed(words=("max",), lists="sizes"),
        default="max",
        description="max, or a list of lengths; requests are padded to the next one",
        put=lambda draft, value: setattr(draft, "padding", () if value == "max" else value),
        read=lambda served: _joined(served.model.padding) if served.model.padding else "max",
        baseline=lambda listed, cores: listed[0],
    ),
    ParameterDefinition(
        "engine_profile",
        "artifact",
        Allowed(words=("shared", "per_batch_size")),
        default="shared",
        description="TensorRT, with batching: one engine for all max_batch_size, or one for each",
        put=lambda draft, value: setattr(draft, "engine_per_batch_size", value == "per_batch_size"),
        read=_read_profile,
        effect=_WITH_BATCHES_OF_ENGINES,
    ),
    ParameterDefinition(
        "cuda_graphs",
        "layout",
        Allowed(switch=True),
        default=False,
        description="TensorRT: launch kernels as one graph",
        put=lambda draft, value: setattr(
            draft, "cuda_graphs", draft.runtime == "tensorrt" and value
        ),
        read=lambda served: served.model.cuda_graphs if _runs_engine(served.model) else None,
        effect=_WITH_ENGINES,
        fields=("optimization.cuda.graphs",),
    ),
    ParameterDefinition(
        "execution_policy",
        "server",
        Allowed(words=("device_blocking", "blocking")),
        default="device_blocking",
        description="TensorRT: one thread for all instances of a GPU, or one for each",
        put=_put_execution_policy,
        read=_read_execution_policy,
        effect=_WITH_ENGINES,
    ),
    ParameterDefinition(
        "rate_limit",
        "server",
        Allowed(words=("off",), least=1),
        default="off",
        description="most concurrent executions on a device, over all models",
        put=lambda draft, value: setattr(
            draft, "executions_per_device", None if value == "off" else value
        ),
        read=lambda served: (
            served.server.executions_per_device if served.model.rate_limited else None
        ),
        effect=ParameterEffect(_limit_binds, lambda model: model.rate_limited),
        fields=("instance_group.rate_limiter",),
    ),
    ParameterDefinition(
        "response_cache",
        "server",
        Allowed(switch=True),
        default=False,
        description="whether Triton answers repeated requests without executing the model",
        put=_store("cache"),
        read=lambda served: served.model.cache,
        fields=("response_cache.enable",),
        triton_names=("cache", "enable"),
    ),
    ParameterDefinition(
        "response_cache_mib",
        "server",
        Allowed(least=1),
        default=64,
        description="size of the response cache, which all models of the server share",
        put=_put_cache_size,
        read=_read_cache_size,
        effect=_WITH_CACHE,
        triton_names=("cache_config", "response_cache_byte_size"),
    ),
    _queue_policy(
        "max_queue_size",
        Allowed(words=("off",), least=1),
        default="off",
        description="requests that may wait in the queue; the server rejects further ones",
        attribute="max_queue_size",
        effect=WITH_BATCHING,
    ),
    _queue_policy(
        "default_timeout_microseconds",
        Allowed(words=("off",), least=1),
        default="off",
        description="how long a request may wait in the queue before timeout_action applies",
        attribute="timeout_us",
        effect=WITH_BATCHING,
    ),
    _queue_policy(
        "timeout_action",
        Allowed(words=("reject", "delay")),
        default="reject",
        description="reject a request that waited too long, or delay it: serve it after all others",
        attribute="timeout_action",
        effect=_WITH_QUEUE_TIMEOUT,
    ),
)
"""In the order of points, tables and files; a new parameter comes last, so that points of older
studies keep their meaning."""
