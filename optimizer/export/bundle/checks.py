"""The checks that verify a bundle against its recorded measurements.

A check passes, fails with its reason, or cannot be made. One under load may be impossible on this
machine because the server died or the load generator fell behind. A capacity that differs from the
measured one while the limit is met is drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.export.bundle.config_fields import field_changes, measured_config
from optimizer.export.bundle.examples import Examples, read_examples
from optimizer.export.bundle.manifest import (
    LINK,
    NO_FILE,
    REBUILD,
    Bundle,
    Manifest,
    digests,
    model_digests,
)
from optimizer.files.untrusted import UnreadableError
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.level_checks import why_missed
from optimizer.triton.model_config import differences
from optimizer.triton.repository import read_config
from optimizer.workload.streams import Tensors

Outcome = Literal["pass", "drift", "fail", "not checked", "not measured"]
CheckName = Literal["files", "configuration", "outputs", "limit", "capacity"]

_WORST_FIRST: tuple[Literal["fail", "not measured", "drift"], ...] = (
    "fail",
    "not measured",
    "drift",
)

_MAX_NAMED_FILES = 5
"""Files that a message names; it counts the others."""


@dataclass(frozen=True)
class Check:
    """The result of one check; `text` is the reason, or the figures."""

    name: CheckName
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Verification:
    """The results of all checks.

    Attributes:
        notes: differences from the measurement that fail nothing by themselves.
        level: at the recommended load of one replica; None if it was not measured.
        capacity: measured here; None if it was not.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    level: LoadLevel | None = None
    capacity: Measurement | None = None

    @property
    def outcome(self) -> Literal["pass", "drift", "fail", "not measured"]:
        """The worst outcome of the checks."""
        outcomes = {check.outcome for check in self.checks}
        for worst in _WORST_FIRST:
            if worst in outcomes:
                return worst
        return "pass"


def check_files(bundle: Bundle) -> Check:
    """Check that the files are the exported ones, all of them and no others.

    The message also names the changed fields of a config.pbtxt: a bundle that fails this check is
    not started, so no other check can show them.
    """
    exported, present = bundle.manifest.files, digests(bundle.root)
    wrong = list(_wrong_files(exported, present))
    wrong += [f"{path}/ was not exported" for path in _unexported_folders(bundle.root, exported)]
    if bundle.repository is not None:
        folders = [model.source_folder for model in bundle.manifest.models]
        patched = model_digests(bundle.repository, folders)
        present |= patched
        wrong += _wrong_files(bundle.manifest.patched, patched, "was not in the repository")
    if not wrong:
        return Check("files", "pass", f"{len(present)} files are those that were exported")
    if len(wrong) > _MAX_NAMED_FILES:
        wrong = [*wrong[:_MAX_NAMED_FILES], f"and {len(wrong) - _MAX_NAMED_FILES} more"]
    return Check("files", "fail", "; ".join([*wrong, *_changed_configurations(bundle)]))


def _wrong_files(
    exported: Mapping[str, str], present: Mapping[str, str], unexpected: str = "was not exported"
) -> Iterator[str]:
    for path, digest in exported.items():
        if path not in present:
            yield f"{path} is missing"
        elif present[path] == LINK:
            yield f"{path} is a link"
        elif present[path] == NO_FILE:
            yield f"{path} is a pipe or a device"
        elif present[path] != digest:
            yield f"{path} differs"
    for path in present:
        if path not in exported:
            compiled = ", and Python would run it: delete it" if path.endswith(".pyc") else ""
            yield f"{path} {unexpected}{compiled}"


def _unexported_folders(root: Path, exported: Mapping[str, str]) -> list[str]:
    """Return added empty folders: Triton takes them for models or versions, and waits for them."""
    parents = {parent.as_posix() for path in exported for parent in PurePosixPath(path).parents}
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_dir()
        and not any(path.iterdir())
        and path.relative_to(root).as_posix() not in parents
    ]


def _changed_configurations(bundle: Bundle) -> list[str]:
    changes = []
    for model in bundle.manifest.models:
        try:
            config = read_config(bundle.folders[model.name] / "config.pbtxt")
        except (UnreadableError, text_format.ParseError) as error:
            changes.append(f"{model.source_folder}/config.pbtxt cannot be read: {error}")
            continue
        measured = measured_config(model)
        config.name = measured.name  # the study had its own
        changes += [
            f"{model.name}: {each.field}: measured {each.before}, the file says {each.after}"
            for each in field_changes(measured, config)
        ]
    return changes


def check_configuration(
    manifest: Manifest, running: Mapping[str, model_config_pb2.ModelConfig]
) -> Check:
    """Check that the server runs the measured configuration.

    Args:
        running: configurations that the server reports, by model.
    """
    set_to = {model.name: dict(model.parameters) for model in manifest.config.models}
    wrong = [
        f"{model.name}: {text}"
        for model in manifest.models
        for text in differences(measured_config(model), running[model.name], set_to[model.name])
    ]
    if wrong:
        return Check("configuration", "fail", "; ".join(wrong))
    return Check("configuration", "pass", "the server runs the measured configuration")


def examples_of(bundle: Bundle) -> dict[str, Examples]:
    """Return the recorded examples, by model. Raises UsageError for unreadable ones."""
    batched = {m.name: m.config.get("max_batch_size", 0) > 0 for m in bundle.manifest.models}
    return {
        model.name: read_examples(bundle.root / model.examples, batched=batched[model.name])
        for model in bundle.manifest.models
        if model.examples is not None
    }


def check_outputs(
    manifest: Manifest, examples: Mapping[str, Examples], answers: Mapping[str, Tensors]
) -> Check:
    """Check that outputs match the recorded ones, within the limits of the accuracy gate."""
    without = [model.name for model in manifest.config.targets if model.name not in examples]
    wrong = [
        f"{model.name}: {text}"
        for model in manifest.models
        if model.name in examples
        for text in examples[model.name].misses(answers[model.name], model.tolerance)
    ]
    if wrong:
        return Check("outputs", "fail", "; ".join(wrong))
    if without:
        reason = f"{', '.join(without)}: the bundle has no recorded examples"
        return Check("outputs", "not checked", reason)
    count = sum(len(each) for each in examples.values())
    return Check("outputs", "pass", f"the outputs of {count} recorded examples match")


def check_limit(manifest: Manifest, level: LoadLevel) -> Check:
    """Check that every limit is met at the recommended load of one replica."""
    latencies = ", ".join(
        f"p{each.limit_percentile:g} of {each.name} {each.latency_ms(each.limit_percentile):.1f} ms"
        f" (limit {each.limit_ms:g} ms)"
        for each in level.streams
    )
    missed = why_missed(level)
    share = f"the share of one replica is {manifest.recommended.per_replica_per_second:,.0f}/s"
    text = f"at {level.offered_per_second:,.0f}/s ({share}): {latencies}"
    if missed is None:
        return Check("limit", "pass", text)
    return Check("limit", "fail", f"{text}: {missed}")


def capacity_departure(manifest: Manifest, measurement: Measurement, within: float) -> float | None:
    """Return how far a capacity lies outside the recorded interval, relative to its nearer end.

    Args:
        within: share of that end which is tolerated.

    Returns:
        None for a capacity inside the interval or the tolerance.
    """
    recorded, capacity = manifest.measured, measurement.capacity_per_second
    high = recorded.capacity_high_per_second or recorded.capacity_per_second
    if capacity < (1 - within) * recorded.capacity_low_per_second:
        return capacity / recorded.capacity_low_per_second - 1
    if capacity > (1 + within) * high:
        return capacity / high - 1
    return None


def check_capacity(manifest: Manifest, measurements: Sequence[Measurement], within: float) -> Check:
    """Check that the capacity matches the recorded one; it drifts if all measurements differ.

    Args:
        measurements: one or more; all but the last differ.
    """
    capacity, recorded = measurements[-1].capacity_per_second, manifest.measured.capacity_per_second
    departure = capacity_departure(manifest, measurements[-1], within)
    text = f"{capacity:,.0f}/s, recorded {recorded:,.0f}/s"
    if departure is None:
        return Check("capacity", "pass", text)
    text += f": {departure:+.0%}, in {len(measurements)} measurements"
    return Check("capacity", "drift", text)


def unchecked(reason: str, *names: CheckName) -> list[Check]:
    """Return checks that cannot be made, with the reason."""
    return [Check(name, "not checked", reason) for name in names]


def how_to_rebuild(manifest: Manifest) -> str | None:
    """Return how to rebuild the bundle's engines; None where it has none."""
    engines = [model for model in manifest.models if model.engine is not None]
    if not engines:
        return None
    if all(model.graph is None for model in engines):
        return (
            "this bundle does not contain the graph that the engine was built from: export it again"
        )
    return f"an engine runs on one GPU model only: `python3 {REBUILD}` in the bundle rebuilds it"


def rebuilt_engines(manifest: Manifest) -> list[str]:
    """Return which engines are not the measured ones."""
    return [
        f"{model.name}: its engine was rebuilt with TensorRT {model.engine.tensorrt} for "
        f"{model.engine.gpu_name}"
        for model in manifest.models
        if model.rebuilt and model.engine is not None
    ]
