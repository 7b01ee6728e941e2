"""config.pbtxt for people: every field with a comment that says where its value comes from. Pure.

Triton reads it as it reads any other: comments are part of protobuf's text format.
"""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.parameters import ParameterName, label
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing
from optimizer.triton.model_config import to_text

Origins = Mapping[str, Mapping[ParameterName, str]]
"""By model and parameter: how its value was chosen, such as "searched among 4, 8"."""


def origins_in(space: SearchSpace) -> Origins:
    """How a study of `space` chose its values."""
    found: dict[str, dict[ParameterName, str]] = {}
    for parameter in space.parameters:
        listed = ", ".join(str(label(value)) for value in parameter.values)
        how = "searched among" if len(parameter.values) > 1 else "fixed by the space file:"
        found.setdefault(parameter.model, {})[parameter.name] = f"{how} {listed}"
    return found


def commented(config: model_config_pb2.ModelConfig, model: ModelServing, origins: Origins) -> str:
    """The configuration as config.pbtxt, a comment before each field."""
    own = origins.get(model.name, {})
    comments = _comments(model, own)
    parts = ["# Triton's configuration of one model. Values named parameters are those that were\n"
             "# measured; a changed one is another configuration, of another cost.\n"]  # fmt: skip
    for field, _ in config.ListFields():
        only = model_config_pb2.ModelConfig()
        # A copy of the one field, whatever its type.
        only.MergeFrom(config)
        for other, _value in config.ListFields():
            if other.name != field.name:
                only.ClearField(other.name)
        said = comments.get(field.name, f"by the template of the {model.artifact.backend} backend")
        parts.append(_comment(said) + to_text(only))
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
            f"no batching: only what one request asks for\n{parameters('batching')}"
        ),
        "input": "inputs of the space file, without the batch; -1 is a request's own length",
        "output": "the model's own output, without the batch; labels are the source's",
        "instance_group": parameters("instance_count", "intra_op_threads"),
        "dynamic_batching": parameters("preferred_batch_sizes", "max_queue_delay_us"),
        "response_cache": "off unless it was measured: answers would not be computed",
        "model_warmup": "zeros of the longest length, so that no first request is slow",
        "parameters": f"what model.py reads: runtime, precision and threads\n"
        f"{parameters('precision', 'intra_op_threads')}",
        "optimization": (
            parameters("cuda_graphs")
            if model.cuda_graphs
            else f"by the template of the {artifact.backend} backend"
        ),
    }  # fmt: skip


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())
