"""The page of what is kept of a trial, made from the dataclasses of the records."""

from __future__ import annotations

import dataclasses
import inspect
import re

from markdown_table import table

from optimizer.configuration import serving_config
from optimizer.measurement import cost, estimates, trial_record
from optimizer.measurement import level as measurement

_KEPT: tuple[type, ...] = (
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
    measurement.ClientUse,
    measurement.MachineUse,
    measurement.GpuUse,
    measurement.Slice,
    measurement.ExtraLimit,
    serving_config.ServingConfig,
    serving_config.ModelServing,
    serving_config.ArtifactSpec,
    serving_config.Batching,
    serving_config.InstanceGroup,
    serving_config.ServerOptions,
)


def records() -> str:
    """The fields of a trial's record, as `trials/` keeps them."""
    parts = [
        "# Records",
        (
            "A trial is kept as one JSON file in `results/STUDY/trials/`, and so are the runs in "
            "`calibration/`, `confirmations/` and `references/`. Its fields, by the names that "
            "they have in the file; units are in the names."
        ),
    ]
    for kind in _KEPT:
        parts += [f"## {kind.__name__}", _first_paragraph(kind), _fields(kind)]
    return "\n\n".join(parts) + "\n"


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
    """What a dataclass's docstring says of its attributes."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text.split("\n\n")[0]):
        names, _, meaning = entry.strip().partition(": ")
        for name in names.split(", "):
            found[name] = re.sub(r"\s+", " ", meaning)
    return found
