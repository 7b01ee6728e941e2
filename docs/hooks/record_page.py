"""The reference of a trial's record, generated from its dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re

from markdown_table import table

from optimizer.configuration import model_graph, serving_config
from optimizer.measurement import cost, estimates, resource_use, trial_record
from optimizer.measurement import level as measurement

_RECORDED: tuple[type, ...] = (
    trial_record.TrialRecord,
    trial_record.Seconds,
    trial_record.Failure,
    cost.Score,
    measurement.Measurement,
    measurement.LoadLevel,
    measurement.StreamLevel,
    estimates.Percentile,
    measurement.ServerSplit,
    measurement.BatchPoint,
    resource_use.ClientUse,
    resource_use.MachineUse,
    resource_use.GpuUse,
    measurement.Slice,
    measurement.ExtraLimit,
    serving_config.ServingConfig,
    serving_config.ModelServing,
    serving_config.ArtifactSpec,
    serving_config.Batching,
    serving_config.InstanceGroup,
    serving_config.ServerOptions,
    model_graph.ModelGraph,
    model_graph.ComposedModel,
    model_graph.Step,
)


def records() -> str:
    """Return a section for each dataclass of a trial's record."""
    parts: list[str] = []
    for kind in _RECORDED:
        parts += [f"## {kind.__name__}", _first_paragraph(kind), _fields(kind)]
    return "\n\n".join(parts)


def _first_paragraph(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def _fields(kind: type) -> str:
    meanings = described(kind)
    rows = []
    for each in dataclasses.fields(kind):
        shown = each.type if isinstance(each.type, str) else each.type.__name__
        rows.append((f"`{each.name}`", f"`{shown}`", meanings.get(each.name, "")))
    return table(("field", "type", "meaning"), rows)


def described(kind: type) -> dict[str, str]:
    """Return the descriptions of attributes in a dataclass's docstring, by name."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text.split("\n\n")[0]):
        names, _, meaning = entry.strip().partition(": ")
        for name in names.split(", "):
            meanings[name] = re.sub(r"\s+", " ", meaning)
    return meanings
