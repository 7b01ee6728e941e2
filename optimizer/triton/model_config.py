"""Triton's ModelConfig message of a `ModelServing`, and its comparison with a running one."""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from google.protobuf import json_format, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2

from optimizer.configuration.parameters import PARAMETERS
from optimizer.configuration.serving_config import (
    NO_QUEUE_POLICY,
    Batching,
    ModelServing,
    QueuePolicy,
)
from optimizer.simulator.response_cache import CachedOutput
from optimizer.triton.server_options import EXECUTION
from optimizer.workload.data_types import NUMPY_TYPES, DataType
from optimizer.workload.request_sizes import padded_length
from optimizer.workload.streams import OutputTensor, Payloads


def model_config(
    model: ModelServing, payloads: Payloads, outputs: Sequence[OutputTensor], template: Path
) -> model_config_pb2.ModelConfig:
    """Return the configuration of `model`.

    Args:
        template: config.pbtxt with the fields that all models of the backend share.

    Raises:
        ValueError: when the template is no ModelConfig; the message names the file and the line.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(template.read_text(), config)
    except text_format.ParseError as error:
        raise ValueError(f"{template} is not a Triton model configuration: {error}") from error
    payloads = payloads.as_served()
    config.name = model.name
    config.max_batch_size = model.max_batch_size if payloads.batched else 0
    add_tensors(config, payloads, outputs)
    _add_instances(config, model)
    _add_batching(config, model)
    config.response_cache.enable = model.cache
    if model.cuda_graphs:
        _add_cuda_graphs(config, model, payloads)
    _add_warmup(config, model, payloads)
    for name, value in _settings(model).items():
        config.parameters[name].string_value = value
    merge_fields(config, model.parameters)
    return config


def merge_fields(config: model_config_pb2.ModelConfig, fields: Sequence[tuple[str, str]]) -> None:
    """Set fields of a configuration, given as pairs of path and JSON value."""
    if not fields:
        return
    content = json_format.MessageToDict(config, preserving_proto_field_name=True)
    for path, text in fields:
        *parents, name = path.split(".")
        part = content
        for parent in parents:
            part = part.setdefault(parent, {})
        part[name] = json.loads(text)
    # Merging messages would not set a field to false, 0 or "".
    config.Clear()
    json_format.ParseDict(content, config)


_NOT_SEARCHED = (
    "backend",
    "batch_input",
    "batch_output",
    "default_model_filename",
    "input",
    "model_transaction_policy",
    "name",
    "output",
    "platform",
    "runtime",
    "sequence_batching",
    "version_policy",
)
"""Fields that say what is served, not how."""

_KINDS: Mapping[int, str] = {
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number of 32 bits, at least 0",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number of 64 bits, at least 0",
    FieldDescriptor.CPPTYPE_STRING: "a text",
}


def wrong_field(path: str, value: Any) -> str | None:
    """Return why a field of config.pbtxt cannot have a value; None where it can."""
    message: Any = model_config_pb2.ModelConfig.DESCRIPTOR
    parts = iter(path.split("."))
    field: Any = None
    for name in parts:
        fields = message.fields_by_name if message is not None else {}
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            return f"config.pbtxt has no field {name!r} there{meant}"
        if field is None and name in _NOT_SEARCHED:
            return f"{name} says what is served, not how, and cannot be searched"
        field = fields[name]
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            next(parts, None)  # the key
            field = message.fields_by_name["value"]
            message = field.message_type
        elif field.is_repeated:
            return f"{name} is a list, whose entries have no path"
    if message is not None:
        return f"must be the path of one of its fields, {', '.join(message.fields_by_name)}"
    try:
        merge_fields(model_config_pb2.ModelConfig(), [(path, json.dumps(value))])
    except json_format.ParseError:
        names = field.enum_type.values_by_name if field.enum_type is not None else ()
        return f"must be {_KINDS.get(field.cpp_type, 'one of ' + ', '.join(names))}"
    return None


def _settings(model: ModelServing) -> dict[str, str]:
    """Return the parameters that model.py reads; Triton's own backends have none."""
    if model.artifact.backend != "python":
        return {}
    return {
        "runtime": model.artifact.runtime,
        "precision": model.artifact.precision,
        "intra_op_threads": str(model.groups[0].threads),
    }


def _add_instances(config: model_config_pb2.ModelConfig, model: ModelServing) -> None:
    for group in model.groups:
        added = config.instance_group.add(
            kind=model_config_pb2.ModelInstanceGroup.Kind.Value(group.kind),
            count=group.count,
            gpus=group.logical_gpus,
        )
        if model.rate_limited:
            added.rate_limiter.resources.add(name=EXECUTION, count=1)


def add_tensors(
    config: model_config_pb2.ModelConfig, payloads: Payloads, outputs: Sequence[OutputTensor]
) -> None:
    """Add inputs and outputs to a configuration."""
    for tensor in payloads.tensors:
        dims = tensor.sized(dict.fromkeys(tensor.free, -1))
        config.input.add(name=tensor.name, data_type=_type(tensor.data_type), dims=dims)
    for output in outputs:
        config.output.add(name=output.name, data_type=_type(output.data_type), dims=output.shape)


def _add_batching(config: model_config_pb2.ModelConfig, model: ModelServing) -> None:
    if model.batching is None:
        return
    config.dynamic_batching.SetInParent()
    config.dynamic_batching.preferred_batch_size.extend(model.batching.preferred_batch_sizes)
    config.dynamic_batching.max_queue_delay_microseconds = model.batching.max_queue_delay_us
    if model.batching.queue_policy != NO_QUEUE_POLICY:
        write_queue_policy(config.dynamic_batching.default_queue_policy, model.batching)


def write_queue_policy(policy: model_config_pb2.ModelQueuePolicy, batching: Batching) -> None:
    """Write how requests are rejected into a queue policy, whose other fields stay."""
    wanted = batching.queue_policy
    policy.max_queue_size = wanted.max_queue_size
    policy.default_timeout_microseconds = wanted.timeout_us
    policy.timeout_action = policy.TimeoutAction.Value(wanted.timeout_action.upper())


def read_queue_policy(batcher: model_config_pb2.ModelDynamicBatching) -> QueuePolicy:
    """Return how a batcher rejects requests; the action counts only where there is a timeout."""
    policy = batcher.default_queue_policy
    timeout = int(policy.default_timeout_microseconds)
    delays = timeout > 0 and policy.timeout_action == policy.DELAY
    return QueuePolicy(int(policy.max_queue_size), timeout, "delay" if delays else "reject")


def _add_cuda_graphs(
    config: model_config_pb2.ModelConfig, model: ModelServing, payloads: Payloads
) -> None:
    """Record a CUDA graph for every batch size that can occur, at every length that is sent.

    Triton replays a graph only for exactly its shape. Without a list it records graphs for batches
    of 1, of the preferred sizes and of max_batch_size, and executes all others without one. A
    lower bound (`graph_lower_bound`) would serve smaller batches with a larger graph, which takes
    the time of the larger batch and leaves rows uninitialised. Triton records each graph three
    times for each instance; the accuracy gate measures the memory that they take.
    """
    cuda = config.optimization.cuda
    cuda.graphs = True
    sizes: Sequence[int] = range(1, model.max_batch_size + 1)
    if not payloads.batched:
        sizes = (0,)  # what Triton calls the batch of a model without a batch axis
    elif model.batching is None:
        sizes = (model.max_batch_size,)
    for size, length in itertools.product(sizes, payloads.sent_lengths(model.padding)):
        spec = cuda.graph_spec.add(batch_size=size)
        for tensor in payloads.tensors:
            spec.input[tensor.name].dim.extend(tensor.sized(payloads.largest_sizes(length)))


def _add_warmup(
    config: model_config_pb2.ModelConfig, model: ModelServing, payloads: Payloads
) -> None:
    """Execute zeros of the largest shape, so that the first requests are not slower.

    A model with an input whose listed values lack zero, such as a sampling rate, may fail on zeros,
    and is not warmed up.
    """
    if any(t.choices and t.data_type != "BYTES" and 0 not in t.choices for t in payloads.tensors):
        return
    length = padded_length(payloads.lengths.longest, model.padding, payloads.lengths)
    sizes = payloads.largest_sizes(length)
    for size in model.warmup_batch_sizes:
        warmup = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for tensor in payloads.tensors:
            entry = warmup.inputs[tensor.name]
            entry.data_type = _type(tensor.data_type)
            entry.dims.extend(tensor.sized(sizes))
            entry.zero_data = True


def warmup_entries(model: ModelServing, payloads: Payloads) -> list[dict[str, Any]]:
    """Return the model_warmup of a model in plain JSON values; empty where it has none."""
    config = model_config_pb2.ModelConfig()
    _add_warmup(config, model, payloads.as_served())
    content = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return list(content.get("model_warmup", ()))


def outputs_of_fixed_size(
    config: model_config_pb2.ModelConfig, rows: int
) -> tuple[CachedOutput, ...] | None:
    """Return a model's outputs of a request as a response cache keeps them.

    None where the size of one depends on the request.

    Args:
        rows: inferences of the request.
    """
    outputs = []
    for output in config.output:
        name = data_type_in(output)
        if name == "BYTES" or -1 in output.dims:
            return None
        batch = [rows] if config.max_batch_size > 0 else []
        elements = math.prod([*batch, *output.dims])
        dimensions, width = len(batch) + len(output.dims), np.dtype(NUMPY_TYPES[name]).itemsize
        outputs.append(CachedOutput(output.name, name, dimensions, elements * width))
    return tuple(outputs)


def _type(name: DataType) -> model_config_pb2.DataType:
    return model_config_pb2.DataType.Value(f"TYPE_{'STRING' if name == 'BYTES' else name}")


def data_type_in(tensor: Any) -> DataType:
    """Return the data type of an input or output of a configuration.

    Raises:
        ValueError: where the configuration leaves it out.
    """
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    own = {"STRING": "BYTES"}.get(name, name)
    if own not in NUMPY_TYPES:
        raise ValueError(f"{tensor.name}: data_type must be given, got TYPE_{name}")
    return cast(DataType, own)


def outputs_of_config(config: model_config_pb2.ModelConfig) -> tuple[OutputTensor, ...]:
    """Return the outputs of a configuration. Raises ValueError where one has no data type."""
    return tuple(OutputTensor(o.name, data_type_in(o), tuple(o.dims)) for o in config.output)


def to_text(config: model_config_pb2.ModelConfig) -> str:
    """Return the text of a config.pbtxt."""
    return str(text_format.MessageToString(config))


def differences(
    requested: model_config_pb2.ModelConfig,
    running: model_config_pb2.ModelConfig,
    paths: Iterable[str] = (),
) -> list[str]:
    """Return a line "field: requested A, the server runs B" for each requested field that differs.

    Defaults that the server fills in elsewhere are ignored, except for a dynamic batcher.

    Args:
        paths: of fields that were requested even where they are false, 0 or empty, which a message
            does not tell from fields that are left out.
    """
    wanted = json_format.MessageToDict(requested, preserving_proto_field_name=True)
    actual = json_format.MessageToDict(running, preserving_proto_field_name=True)
    batcher = wanted.get("dynamic_batching")
    if batcher is not None and "preferred_batch_size" not in batcher:
        # Triton reads "no preference" as a preference for the largest batch.
        batcher["preferred_batch_size"] = [requested.max_batch_size]
    differing = {path: (asked, runs) for path, asked, runs in _differing(wanted, actual, "")}
    default = model_config_pb2.ModelConfig()
    for path in dict.fromkeys((*_ALWAYS_REQUESTED, *paths)):
        asked, runs = _value_at(requested, path), _value_at(running, path)
        if path in differing or asked == _value_at(default, path) != runs:
            differing[path] = (asked, runs)
    if batcher is None and "dynamic_batching" in actual:
        differing["dynamic_batching"] = ("none", actual["dynamic_batching"])
    return [
        f"{path}: requested {asked}, the server runs {runs}"
        for path, (asked, runs) in differing.items()
    ]


def _value_at(config: model_config_pb2.ModelConfig, path: str) -> object:
    """Return the value of a field, its default where it is left out; None for no single value."""
    part: Any = model_config_pb2.ModelConfig()
    part.CopyFrom(config)  # reading an absent key of a map adds it
    names, field = iter(path.split(".")), None
    for name in names:
        field = part.DESCRIPTOR.fields_by_name[name]
        part = getattr(part, name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, field = next(names, None), entry.fields_by_name["value"]
            if key is None:
                return None
            is_text = entry.fields_by_name["key"].cpp_type == FieldDescriptor.CPPTYPE_STRING
            part = part[key if is_text else int(key)]
        elif field.is_repeated:
            return None
    if isinstance(part, Message):
        return None
    kind = field.enum_type if field is not None else None
    return kind.values_by_number[part].name if kind is not None else part


_ALWAYS_REQUESTED = tuple(
    path
    for path in (path for each in PARAMETERS for path in each.fields)
    if isinstance(_value_at(model_config_pb2.ModelConfig(), path), bool | int)
)
"""Fields that a configuration of this program has even where they are false or 0."""


def _differing(wanted: Any, actual: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each part that differs, with both values."""
    if isinstance(wanted, dict) and isinstance(actual, dict):
        parts = [(f"{path}.{k}" if path else k, v, actual.get(k)) for k, v in wanted.items()]
    elif isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        pairs = zip(wanted, actual, strict=True)
        parts = [(f"{path}[{n}]", w, a) for n, (w, a) in enumerate(pairs)]
    elif wanted == actual:
        return
    else:
        yield path, wanted, actual
        return
    for key, asked, runs in parts:
        yield from _differing(asked, runs, key)
