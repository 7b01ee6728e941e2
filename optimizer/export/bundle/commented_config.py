"""config.pbtxt with a comment above every field, which says where its value comes from.

Triton ignores the comments: they are part of protobuf's text format.
"""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.parameters import ParameterName, label
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing
from optimizer.triton.model_config import to_text

Origins = Mapping[str, Mapping[ParameterName, str]]
"""How values were chosen, such as "searched among 4, 8", by model and parameter."""


def origins_in(space: SearchSpace) -> Origins:
    """Return how a study of `space` chose its values."""
    origins: dict[str, dict[ParameterName, str]] = {}
    for parameter in space.parameters:
        listed = ", ".join(str(label(value)) for value in parameter.values)
        how = "searched among" if len(parameter.values) > 1 else "fixed by the space file:"
        origins.setdefault(parameter.model, {})[parameter.name] = f"{how} {listed}"
    return origins


def commented(config: model_config_pb2.ModelConfig, model: ModelServing, origins: Origins) -> str:
    """Return the configuration as config.pbtxt with a comment above each field."""
    own = origins.get(model.name, {})
    comments = _comments(model, own)
    from_template = f"from the template of the {model.artifact.backend} backend"
    parts = ["# Triton's configuration of one model. The parameters named below have the measured\n"
             "# values; with other values, capacity and cost differ.\n"]  # fmt: skip
    for field, _ in config.ListFields():
        only = model_config_pb2.ModelConfig()
        # Copy one field, whatever its type.
        only.MergeFrom(config)
        for other, _value in config.ListFields():
            if other.name != field.name:
                only.ClearField(other.name)
        comment = comments.get(field.name, from_template)
        parts.append("".join(f"# {line}\n" for line in comment.splitlines()) + to_text(only))
    return "\n".join(parts)


def _comments(model: ModelServing, own: Mapping[ParameterName, str]) -> dict[str, str]:
    artifact = model.artifact

    def parameters(*names: ParameterName) -> str:
        return "\n".join(f"parameter {name}: {own.get(name, 'as measured')}" for name in names)

    batching = parameters("batching", "max_batch_size")
    return {
        "name": "the model's name in the space file",
        "backend": f"hosts {artifact.runtime}; {parameters('runtime')}",
        "max_batch_size": batching if model.batching is not None else (
            f"no batching: at most the batch size of one request\n{parameters('batching')}"
        ),
        "input": "inputs of the space file, without the batch; -1 is the length of a request",
        "output": "output of the model, without the batch; labels come from its source",
        "instance_group": parameters("instance_count", "intra_op_threads"),
        "dynamic_batching": parameters("preferred_batch_sizes", "max_queue_delay_us"),
        "response_cache": "off unless it was measured: cached replies are not computed",
        "model_warmup": "zeros of the longest length, so that the first request is not slow",
        "parameters": f"read by model.py: runtime, precision and threads\n"
        f"{parameters('precision', 'intra_op_threads')}",
        "optimization": (
            parameters("cuda_graphs")
            if model.cuda_graphs
            else f"from the template of the {artifact.backend} backend"
        ),
    }  # fmt: skip
