"""Whether a bundle is what was measured, and does what was measured: the checks, one by one.

Each check passes, fails with its reason, or could not be made; one under load may turn out to be
impossible here, because the server died or the load generator fell behind. A capacity that is
another than the measured one, while the limit is held, is drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from optimizer.export.bundle.config_fields import field_changes, measured_config
from optimizer.export.bundle.examples import Examples, read_examples
from optimizer.export.bundle.manifest import LINK, NO_FILE, REBUILD, Bundle, Manifest, digests
from optimizer.files.untrusted import UnreadableError
from optimizer.load.level_checks import why_missed
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.triton.model_config import differences
from optimizer.triton.repository import read_config

Outcome = Literal["pass", "drift", "fail", "not checked", "not measured"]
CheckName = Literal["files", "configuration", "outputs", "limit", "capacity"]

_FROM_THE_WORST: tuple[Literal["fail", "not measured", "drift"], ...] = (
    "fail",
    "not measured",
    "drift",
)

_NAMED = 5
"""Files that a message names; the rest it counts."""


@dataclass(frozen=True)
class Check:
    """What one check found; `text` is the reason, or the figures."""

    name: CheckName
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Verification:
    """What all checks found.

    Attributes:
        notes: what is not as it was when the bundle was measured, and fails nothing by itself.
        level: at the recommended load of one replica, None where it did not come to that.
        capacity: as it was found here, None where it did not come to that.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    level: LoadLevel | None = None
    capacity: Measurement | None = None

    @property
    def outcome(self) -> Literal["pass", "drift", "fail", "not measured"]:
        """The worst of the checks."""
        found = {check.outcome for check in self.checks}
        for worst in _FROM_THE_WORST:
            if worst in found:
                return worst
        return "pass"


def check_files(bundle: Bundle) -> Check:
    """Every file is the one that was exported, and there is no other.

    Of a changed config.pbtxt, what it changes is said too: nothing of a bundle whose files are
    others is executed.
    """
    named, found = bundle.manifest.files, digests(bundle.root)
    wrong = list(_wrong_files(named, found))
    wrong += [f"{path}/ was not exported" for path in _further_folders(bundle.root, named)]
    if not wrong:
        return Check("files", "pass", f"{len(found)} files are those that were exported")
    if len(wrong) > _NAMED:
        wrong = [*wrong[:_NAMED], f"and {len(wrong) - _NAMED} more"]
    return Check("files", "fail", "; ".join([*wrong, *_changed_configurations(bundle)]))


def _wrong_files(named: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    for path, digest in named.items():
        if path not in found:
            yield f"{path} is missing"
        elif found[path] == LINK:
            yield f"{path} is a link to what lies elsewhere"
        elif found[path] == NO_FILE:
            yield f"{path} is a pipe or a device"
        elif found[path] != digest:
            yield f"{path} has other content"
    for path in found:
        if path not in named:
            compiled = ", and Python runs it: delete it" if path.endswith(".pyc") else ""
            yield f"{path} was not exported{compiled}"


def _further_folders(root: Path, named: Mapping[str, str]) -> list[str]:
    """Folders without any file: Triton takes them for models or versions, and waits for them."""
    known = {parent.as_posix() for path in named for parent in PurePosixPath(path).parents}
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_dir()
        and not any(path.iterdir())
        and path.relative_to(root).as_posix() not in known
    ]


def _changed_configurations(bundle: Bundle) -> list[str]:
    found = []
    for model in bundle.manifest.models:
        try:
            there = read_config(bundle.root / model.name / "config.pbtxt")
        except (UnreadableError, text_format.ParseError) as error:
            found.append(f"{model.name}/config.pbtxt cannot be read: {error}")
            continue
        found += [
            f"{model.name}: {each.field}: measured {each.before}, the file says {each.after}"
            for each in field_changes(measured_config(model), there)
        ]
    return found


def check_configuration(
    manifest: Manifest, running: Mapping[str, model_config_pb2.ModelConfig]
) -> Check:
    """What the server runs is what was measured.

    Args:
        running: by model, as the server tells it.
    """
    wrong = [
        f"{model.name}: {text}"
        for model in manifest.models
        for text in differences(measured_config(model), running[model.name])
    ]
    if wrong:
        return Check("configuration", "fail", "; ".join(wrong))
    return Check("configuration", "pass", "the server runs what was measured")


def examples_of(bundle: Bundle) -> dict[str, Examples]:
    """The recorded examples, by model. Raises UsageError where they cannot be read."""
    return {
        model.name: read_examples(bundle.root / model.examples)
        for model in bundle.manifest.models
        if model.examples is not None
    }


def check_outputs(
    manifest: Manifest, examples: Mapping[str, Examples], answers: Mapping[str, NDArray[Any]]
) -> Check:
    """What the server answers is what the measured one did, within the accuracy gate's limits."""
    without = [model.name for model in manifest.models if model.name not in examples]
    wrong = [
        f"{model.name}: {text}"
        for model in manifest.models
        if model.name in examples
        for text in examples[model.name].misses(answers[model.name], model.tolerance)
    ]
    if wrong:
        return Check("outputs", "fail", "; ".join(wrong))
    if without:
        reason = f"{', '.join(without)}: the bundle holds no recorded examples"
        return Check("outputs", "not checked", reason)
    count = sum(len(each.answers) for each in examples.values())
    return Check("outputs", "pass", f"{count} recorded examples are answered as they were")


def check_limit(manifest: Manifest, level: LoadLevel) -> Check:
    """Every limit is met at the recommended load of one replica."""
    shown = ", ".join(
        f"p{each.limit_percentile:g} of {each.name} {each.latency_ms(each.limit_percentile):.1f} ms"
        f" (limit {each.limit_ms:g} ms)"
        for each in level.streams
    )
    missed = why_missed(level)
    share = f"the share of one replica is {manifest.recommended.per_replica_per_second:,.0f}/s"
    text = f"at {level.offered_per_second:,.0f}/s ({share}): {shown}"
    if missed is None:
        return Check("limit", "pass", text)
    return Check("limit", "fail", f"{text}: {missed}")


def capacity_departure(manifest: Manifest, found: Measurement, within: float) -> float | None:
    """How far a capacity lies outside the interval that was measured, relative to its nearer end.

    Args:
        within: share of that end which is no difference.

    Returns:
        None where it does not.
    """
    measured = manifest.measured
    high = measured.capacity_high_per_second or measured.capacity_per_second
    if found.capacity_per_second < (1 - within) * measured.capacity_low_per_second:
        return found.capacity_per_second / measured.capacity_low_per_second - 1
    if found.capacity_per_second > (1 + within) * high:
        return found.capacity_per_second / high - 1
    return None


def check_capacity(manifest: Manifest, found: Sequence[Measurement], within: float) -> Check:
    """The capacity is the measured one; it is another where all measurements say so.

    Args:
        found: one or more, of which none is off where the last is not.
    """
    last = found[-1]
    off = capacity_departure(manifest, last, within)
    shown = f"{last.capacity_per_second:,.0f}/s, {manifest.measured.capacity_per_second:,.0f}/s"
    shown += " when it was measured"
    if off is None:
        return Check("capacity", "pass", shown)
    return Check("capacity", "drift", f"{shown}: {off:+.0%}, in {len(found)} measurements")


def unchecked(reason: str, *names: CheckName) -> list[Check]:
    """Checks that could not be made."""
    return [Check(name, "not checked", reason) for name in names]


def how_to_rebuild(manifest: Manifest) -> str | None:
    """How the bundle's engines are built anew; None where it has none."""
    engines = [model for model in manifest.models if model.engine is not None]
    if not engines:
        return None
    if all(model.graph is None for model in engines):
        return "this bundle does not hold the graph that it was built from: export it anew"
    return f"an engine does not travel: `python3 {REBUILD}` in the bundle builds it for this GPU"


def rebuilt_engines(manifest: Manifest) -> list[str]:
    """Which engines are not those that were measured."""
    return [
        f"{model.name}: its engine was built anew, with TensorRT {model.engine.tensorrt} for "
        f"{model.engine.gpu_name}"
        for model in manifest.models
        if model.rebuilt and model.engine is not None
    ]
