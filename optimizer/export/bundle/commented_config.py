"""config.pbtxt with a comment above every field, which says where its value comes from.

Triton ignores the comments: they are part of protobuf's text format.
"""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.parameter_definition import label
from optimizer.configuration.parameters import PARAMETERS
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing
from optimizer.measurement.cache_use import cache_uses
from optimizer.measurement.cold_start import ColdStart
from optimizer.measurement.level import Measurement
from optimizer.triton.model_config import to_text

Origins = Mapping[str, Mapping[str, str]]
"""How values were chosen, such as "searched among 4, 8", by model and parameter."""


def origins_in(space: SearchSpace, cold_start: ColdStart | None = None) -> Origins:
    """Return how a study of `space` chose its values.

    Args:
        cold_start: of the configuration, where it was measured: the reason for its model_warmup.
    """
    origins: dict[str, dict[str, str]] = {}
    for parameter in space.parameters:
        listed = ", ".join(str(label(value)) for value in parameter.values)
        how = "searched among" if len(parameter.values) > 1 else "fixed by the space file:"
        origins.setdefault(parameter.model, {})[parameter.name] = f"{how} {listed}"
    if cold_start is not None and (cold := cold_start.otherwise) is not None:
        for first in cold_start.as_served.first_requests:
            other = cold.first_request(first.model, first.batch_size)
            if other is not None and "model_warmup" not in origins.setdefault(first.model, {}):
                origins[first.model]["model_warmup"] = (
                    f"\nmeasured: the first request took {first.first_ms:.1f} ms with it, "
                    f"{other.first_ms:.1f} ms without it"
                )
    return origins


def with_hits(origins: Origins, measurement: Measurement) -> Origins:
    """Return the origins with how much of the measured traffic the response cache answered."""
    added = {name: dict(own) for name, own in origins.items()}
    for use in cache_uses(measurement.levels):
        own = added.setdefault(use.model, {})
        expected = use.expected_hit_rate
        beside = f", {expected:.1%} expected" if expected is not None else ""
        own["response_cache"] = (
            f"{own.get('response_cache', 'as measured')}\n"
            f"measured: it answered {use.hit_rate:.1%} of the requests{beside}"
        )
    return added


def commented(config: model_config_pb2.ModelConfig, model: ModelServing, origins: Origins) -> str:
    """Return the configuration as config.pbtxt, with a comment above each field."""
    own = origins.get(model.name, {})
    parts = ["# Triton's configuration of one model. The parameters named below have the measured\n"
             "# values; with other values, capacity and cost differ.\n"]  # fmt: skip
    for field, _ in config.ListFields():
        only = model_config_pb2.ModelConfig()
        # Copy one field, whatever its type.
        only.MergeFrom(config)
        for other, _value in config.ListFields():
            if other.name != field.name:
                only.ClearField(other.name)
        comment = _comment_of(field.name, model, own)
        parts.append("".join(f"# {line}\n" for line in comment.splitlines()) + to_text(only))
    return "\n".join(parts)


def _comment_of(field: str, model: ModelServing, own: Mapping[str, str]) -> str:
    text = {
        "name": "the model's name in the space file",
        "backend": f"hosts {model.artifact.runtime}",
        "max_batch_size": ""
        if model.batching
        else "no batching: at most the batch size of one request",
        "input": "inputs of the space file, without the batch; -1 is the length of a request",
        "output": "output of the model, without the batch; labels come from its source",
        "model_warmup": "zeros of the longest length, so that the first request is not slow"
        + own.get("model_warmup", ""),
        "parameters": "read by model.py: runtime, precision and threads",
    }.get(field, "")
    parameters = [
        f"parameter {each.file_key}: {own.get(each.name, 'as measured')}"
        for each in PARAMETERS
        if field in (path.split(".")[0] for path in each.fields) and each.effect.model(model)
    ]
    lines = [text, *parameters] if text else parameters
    return "\n".join(lines) or f"from the template of the {model.artifact.backend} backend"
