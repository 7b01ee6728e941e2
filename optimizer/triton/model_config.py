"""config.pbtxt: from a `ModelServing` to Triton's ModelConfig message, and back for comparison."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, get_args

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from optimizer.configuration.parameters import PARAMETERS
from optimizer.configuration.serving_config import ModelServing
from optimizer.triton.server_options import EXECUTION
from optimizer.workload.streams import DataType, OutputTensor, Payloads, padded_length


def model_config(
    model: ModelServing, payloads: Payloads, output: OutputTensor, template: Path
) -> model_config_pb2.ModelConfig:
    """The message that has Triton serve `model` as asked.

    Args:
        template: config.pbtxt that holds what is the same for every model of the backend.

    Raises:
        ValueError: when the template is no ModelConfig; names the file and the place in it.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(template.read_text(), config)
    except text_format.ParseError as error:
        raise ValueError(f"{template} is no Triton model configuration: {error}") from error
    config.name = model.name
    config.max_batch_size = model.max_batch_size
    _add_tensors(config, payloads, output)
    _add_instances(config, model)
    _add_batching(config, model)
    config.response_cache.enable = model.cache
    if model.cuda_graphs:
        _add_cuda_graphs(config, model, payloads)
    _add_warmup(config, model, payloads)
    for name, value in _settings(model).items():
        config.parameters[name].string_value = value
    for path, text in model.parameters:
        config.MergeFrom(_one_field(path, json.loads(text)))
    return config


def _one_field(path: str, value: Any) -> model_config_pb2.ModelConfig:
    """Make a message that holds one field, such as "optimization.input_pinned_memory.enable"."""
    content: Any = value
    for name in reversed(path.split(".")):
        content = {name: content}
    try:
        return json_format.ParseDict(content, model_config_pb2.ModelConfig())
    except json_format.ParseError as error:
        raise ValueError(f"config.pbtxt has no field {path} that is {value!r}: {error}") from error


def _settings(model: ModelServing) -> dict[str, str]:
    """What model.py reads; a backend of Triton's own knows nothing of it."""
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


def _add_tensors(
    config: model_config_pb2.ModelConfig, payloads: Payloads, output: OutputTensor
) -> None:
    for tensor in payloads.tensors:
        dims = [-1 if n is None else n for n in tensor.shape]
        config.input.add(name=tensor.name, data_type=_type(tensor.data_type), dims=dims)
    config.output.add(name=output.name, data_type=_type(output.data_type), dims=output.shape)


def _add_batching(config: model_config_pb2.ModelConfig, model: ModelServing) -> None:
    if model.batching is None:
        return
    config.dynamic_batching.SetInParent()
    config.dynamic_batching.preferred_batch_size.extend(model.batching.preferred_batch_sizes)
    config.dynamic_batching.max_queue_delay_microseconds = model.batching.max_queue_delay_us


def _add_cuda_graphs(
    config: model_config_pb2.ModelConfig, model: ModelServing, payloads: Payloads
) -> None:
    """Record graphs for the batch sizes that Triton chooses itself, at every length that is sent.

    Unless it is told, Triton records them at the engine's optimal length, which is the longest.
    """
    cuda, lengths = config.optimization.cuda, payloads.lengths
    cuda.graphs = True
    sent = payloads.sent_lengths(model.padding)
    if sent == (lengths.longest,):
        return
    preferred = model.batching.preferred_batch_sizes if model.batching is not None else ()
    sizes = {1, *preferred, model.max_batch_size}
    for size, length in itertools.product(sorted(sizes), sent):
        spec = cuda.graph_spec.add(batch_size=size)
        for tensor in payloads.tensors:
            dims = (length if n is None else n for n in tensor.shape)
            spec.input[tensor.name].dim.extend(dims)


def _add_warmup(
    config: model_config_pb2.ModelConfig, model: ModelServing, payloads: Payloads
) -> None:
    """Execute zeros of the longest length, so that the first request is not the slowest."""
    length = padded_length(payloads.lengths.longest, model.padding, payloads.lengths)
    for size in model.warmup_batch_sizes:
        warmup = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for tensor in payloads.tensors:
            entry = warmup.inputs[tensor.name]
            entry.data_type = _type(tensor.data_type)
            entry.dims.extend(length if n is None else n for n in tensor.shape)
            entry.zero_data = True


def _type(name: DataType) -> model_config_pb2.DataType:
    return model_config_pb2.DataType.Value(f"TYPE_{name}")


def output_of_config(config: model_config_pb2.ModelConfig) -> OutputTensor:
    """The tensor that the model of a configuration written here answers with."""
    [output] = config.output
    known = get_args(DataType)
    name = model_config_pb2.DataType.Name(output.data_type).removeprefix("TYPE_")
    data_type: DataType = known[known.index(name)]
    return OutputTensor(output.name, data_type, tuple(output.dims))


def to_text(config: model_config_pb2.ModelConfig) -> str:
    """The message as config.pbtxt."""
    return str(text_format.MessageToString(config))


def differences(
    asked: model_config_pb2.ModelConfig, running: model_config_pb2.ModelConfig
) -> list[str]:
    """Lines "field: asked A, the server runs B" for everything asked for that is not so.

    The server fills in defaults of its own; these count only where something was asked. A batcher
    that nobody asked for is a difference.
    """
    wanted = json_format.MessageToDict(asked, preserving_proto_field_name=True)
    found = json_format.MessageToDict(running, preserving_proto_field_name=True)
    for message in (wanted, found):
        _fill_in_zeros(message)
    batcher = wanted.get("dynamic_batching")
    if batcher is not None and "preferred_batch_size" not in batcher:
        # Triton reads "no preference" as a preference for the largest batch.
        batcher["preferred_batch_size"] = [asked.max_batch_size]
    lines = list(_missing(wanted, found, ""))
    if batcher is None and "dynamic_batching" in found:
        lines.append(f"dynamic_batching: asked none, the server runs {found['dynamic_batching']}")
    return lines


def _zero_of(path: str) -> object:
    """Return what JSON has where a message leaves a field out; None for what is repeated."""
    message = model_config_pb2.ModelConfig
    *sections, field = path.split(".")
    for name in sections:
        if name in _zeros_of(message):  # as a list or a map has, and a single message has not
            return None
        message = message.DESCRIPTOR.fields_by_name[name].message_type._concrete_class
    zero = _zeros_of(message).get(field)
    return zero if isinstance(zero, bool | int | str) else None


def _zeros_of(message: type[Any]) -> dict[str, Any]:
    return json_format.MessageToDict(
        message(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


_ZEROS = {
    path: zero
    for path in ("response_cache.enable", *(path for each in PARAMETERS for path in each.fields))
    if (zero := _zero_of(path)) is not None
}


def _fill_in_zeros(message: dict[str, Any]) -> None:
    """Add parameters that are 0 or false, which a message leaves out though they were asked for."""
    for path, zero in _ZEROS.items():
        *sections, field = path.split(".")
        part: dict[str, Any] | None = message
        for name in sections:
            part = part.get(name) if part is not None else None
        if part is not None:
            part.setdefault(field, zero)


def _missing(asked: Any, found: Any, path: str) -> list[str]:
    if isinstance(asked, dict) and isinstance(found, dict):
        parts = [(f"{path}.{k}" if path else k, v, found.get(k)) for k, v in asked.items()]
        return [line for key, a, f in parts for line in _missing(a, f, key)]
    if isinstance(asked, list) and isinstance(found, list) and len(asked) == len(found):
        pairs = zip(asked, found, strict=True)
        return [line for n, (a, f) in enumerate(pairs) for line in _missing(a, f, f"{path}[{n}]")]
    return [] if asked == found else [f"{path}: asked {asked}, the server runs {found}"]
