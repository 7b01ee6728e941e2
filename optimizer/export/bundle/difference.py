"""Comparison of two bundles: configuration, versions, limits, demand, price and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from optimizer.export.bundle.config_fields import ABSENT, field_changes, in_words, measured_config
from optimizer.export.bundle.manifest import (
    EXAMPLES,
    LOAD,
    PATCH,
    UNKNOWN,
    ExportedModel,
    Manifest,
    MeasuredFigures,
)

Kind = Literal["configuration", "artefact", "versions", "limits", "demand", "price"]

_DESCRIBED = ("README.md", "requirements.txt", "config.pbtxt", LOAD, EXAMPLES, PATCH)
"""Files whose differences appear as changes, or follow from them."""


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        what: such as "bert: dynamic_batching.max_queue_delay_microseconds".
    """

    kind: Kind
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class FigureChange:
    """A figure of both bundles; the two may be equal."""

    what: str
    before: float
    after: float

    @property
    def ratio(self) -> float | None:
        """After relative to before; None where before is zero."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class BundleDifference:
    """Two bundles side by side.

    Attributes:
        files: paths of files that differ or that only one bundle has, without descriptions.
        caveats: reasons why the figures are not comparable as they are.
    """

    changes: tuple[Change, ...]
    figures: tuple[FigureChange, ...]
    files: tuple[str, ...]
    caveats: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether both serve the same models with the same configuration."""
        return not self.changes and not self.files


def difference(before: Manifest, after: Manifest) -> BundleDifference:
    """Return what changes from one bundle to the other."""
    sections: tuple[tuple[Kind, Callable[[Manifest], Mapping[str, str]]], ...] = (
        ("configuration", lambda m: {"server: arguments": in_words(m.server_arguments)}),
        ("versions", _versions),
        ("limits", _limits),
        ("demand", _demand),
        ("price", _price),
    )
    changes = [*_models(before, after)]
    for kind, section in sections:
        changes += _mapping(kind, "", section(before), section(after))
    figures = tuple(FigureChange(k, of(before), of(after)) for k, of in _FIGURES.items())
    return BundleDifference(tuple(changes), figures, _files(before, after), _caveats(before, after))


def _models(before: Manifest, after: Manifest) -> Iterator[Change]:
    old, new = ({m.name: m for m in each.models} for each in (before, after))
    for name in dict.fromkeys((*old, *new)):
        if name not in old or name not in new:
            presence = ("served" if name in each else ABSENT for each in (old, new))
            yield Change("configuration", name, *presence)
            continue
        for each in field_changes(measured_config(old[name]), measured_config(new[name])):
            yield Change("configuration", f"{name}: {each.field}", each.before, each.after)
        artefacts = (_artifact(before, old[name]), _artifact(after, new[name]))
        yield from _mapping("artefact", name, *artefacts)


def _artifact(manifest: Manifest, model: ExportedModel) -> dict[str, str]:
    serving = next(each for each in manifest.config.models if each.name == model.name)
    spec = serving.artifact
    return {
        "runtime": spec.runtime,
        "precision": spec.precision,
        "model file": model.artifact_sha256[:12],
        "engine": in_words(model.engine and model.engine.gpu_name),
        "TensorRT": in_words(model.engine and model.engine.tensorrt),
        "licence": model.licence,
        "packages": in_words(model.packages),
        "requests padded to": in_words(serving.padding),
    }


def _versions(manifest: Manifest) -> dict[str, str]:
    versions = manifest.versions
    named = {
        name: in_words(value) for name, value in asdict(versions).items() if name != "packages"
    }
    # Triton's version is None if no server recorded examples: that is no difference.
    return {**named, "triton": versions.triton or UNKNOWN, **versions.packages}


def _limits(manifest: Manifest) -> dict[str, str]:
    return {
        each.stream: f"p{each.percentile:g} within {each.latency_ms:g} ms"
        for each in manifest.limits
    }


def _demand(manifest: Manifest) -> dict[str, str]:
    of_streams = {each.stream: f"{each.demand_per_second:g}/s" for each in manifest.limits}
    return {**of_streams, "headroom": f"{manifest.recommended.headroom:.0%}"}


def _price(manifest: Manifest) -> dict[str, str]:
    price = manifest.recommended.price
    return {
        "instance type": price.instance_type,
        "$ per hour": f"{price.usd_per_hour:g}",
        "source": f"{price.source}, {price.as_of}",
    }


def _mapping(
    kind: Kind, subject: str, before: Mapping[str, str], after: Mapping[str, str]
) -> Iterator[Change]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if old != new:
            yield Change(kind, f"{subject}: {key}" if subject else key, old, new)


_FIGURES: Mapping[str, Callable[[Manifest], float]] = {
    "capacity of a replica, requests/s": lambda m: m.measured.capacity_per_second,
    "$ per million at capacity": lambda m: m.recommended.score.usd_per_million_at_capacity,
    "$ per million at demand": lambda m: m.recommended.score.usd_per_million_at_demand,
    "replicas": lambda m: m.recommended.score.replicas,
    "fleet, $ per hour": lambda m: m.recommended.score.fleet_usd_per_hour,
}


def _files(before: Manifest, after: Manifest) -> tuple[str, ...]:
    old, new = ({**each.files, **each.patched} for each in (before, after))
    return tuple(
        path
        for path in dict.fromkeys((*old, *new))
        if old.get(path) != new.get(path) and path.rpartition("/")[2] not in _DESCRIBED
    )


def _caveats(before: Manifest, after: Manifest) -> tuple[str, ...]:
    caveats = []
    machines = [(m.versions.cpu, m.versions.cores, m.versions.gpus) for m in (before, after)]
    if machines[0] != machines[1]:
        caveats.append("the bundles were measured on different machines")
    if _limits(before) != _limits(after):
        caveats.append("their capacities are for different limits")
    caveats += [
        f"the capacity of {which} is not confirmed: one trial"
        for which, manifest in (("the first", before), ("the second", after))
        if not manifest.measured.confirmed
    ]
    intervals = [_interval(before.measured), _interval(after.measured)]
    differ = before.measured != after.measured
    if differ and max(low for low, _ in intervals) <= min(high for _, high in intervals):
        caveats.append("their capacities show no statistically significant difference")
    return tuple(caveats)


def _interval(measured: MeasuredFigures) -> tuple[float, float]:
    high = measured.capacity_high_per_second
    return measured.capacity_low_per_second, math.inf if high is None else high
