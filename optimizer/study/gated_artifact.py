"""What the prepare phase found of one artefact, and its row in prepared.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.artifacts.accuracy import Accuracy
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.measurement.host_share import HostTiming
from optimizer.study.events import ArtifactReady
from optimizer.study.gate_plan import FailingBatch, GatedShapes, GatePlan, covered


@dataclass(frozen=True)
class GatedArtifact:
    """An artefact and what the gate found of it.

    Attributes:
        instance_mib: memory that one instance takes, None where it was not seen.
        dropped: why it left the space.
        shapes: at which its answers are right; None where it was not served.
        failing: the smallest batch found wrong: configurations that reach it left the space.
        timings: how long it takes in Triton's Python backend and bare; empty where it was
            not timed.
        int8_share: of the model's multiply-accumulates that are in INT8; None without INT8.
    """

    spec: ArtifactSpec
    sha256: str | None
    build_seconds: float
    accuracy: Accuracy | None
    instance_mib: float | None
    dropped: str | None
    shapes: GatedShapes | None = None
    failing: FailingBatch | None = None
    timings: tuple[HostTiming, ...] = ()
    int8_share: float | None = None


def ready_event(result: GatedArtifact) -> ArtifactReady:
    """Return what a watcher is told of an artefact."""
    if result.dropped is not None:
        return ArtifactReady(result.spec.label, result.dropped, dropped=True)
    assert result.accuracy is not None
    detail = (
        f"argmax agreement {result.accuracy.argmax_agreement:.3f}, "
        f"cosine {result.accuracy.mean_cosine:.4f}"
    )
    if result.accuracy.metric is not None:
        detail += f", metric {result.accuracy.metric:.4g}"
    if result.int8_share is not None:
        detail += f", INT8 covers {result.int8_share:.0%} of the multiply-accumulates"
    if result.failing is not None:
        detail += f", batches below {result.failing.size}"
    if result.build_seconds:
        detail += f", built in {result.build_seconds:.1f} s"
    return ArtifactReady(result.spec.label, detail, dropped=False)


def to_json(result: GatedArtifact) -> dict[str, Any]:
    """Return the row of an artefact in prepared.json."""
    return {
        "artifact": result.spec.label,
        "sha256": result.sha256,
        "accuracy": accuracy_to_json(result.accuracy),
        "instance_mib": result.instance_mib,
        "dropped": result.dropped,
        "shapes": asdict(result.shapes) if result.shapes is not None else None,
        "failing_batch": asdict(result.failing) if result.failing is not None else None,
        "timings": [asdict(timing) for timing in result.timings],
        "int8_share": result.int8_share,
    }


def from_json(row: Mapping[str, Any], spec: ArtifactSpec) -> GatedArtifact | None:
    """Return what a row says; None where it was written before shapes were recorded."""
    if row.get("shapes") is None:
        return None
    shapes, failing = row["shapes"], row["failing_batch"]
    return GatedArtifact(
        spec=spec,
        sha256=row["sha256"],
        build_seconds=0.0,
        accuracy=_accuracy_from_json(row["accuracy"]),
        instance_mib=row["instance_mib"],
        dropped=row["dropped"],
        shapes=GatedShapes(tuple(shapes["batch_sizes"]), tuple(shapes["lengths"])),
        failing=FailingBatch(**failing) if failing is not None else None,
        timings=tuple(HostTiming(**timing) for timing in row["timings"]),
        int8_share=row.get("int8_share"),
    )


def is_complete(result: GatedArtifact, plan: GatePlan) -> bool:
    """Say whether what was found holds for everything that is planned now."""
    if result.dropped is not None:
        return True
    return result.shapes is not None and covered(plan, result.shapes, result.failing)


def accuracy_to_json(accuracy: Accuracy | None) -> dict[str, Any] | None:
    """Return an accuracy as JSON, which has no infinity: the error of such outputs is null."""
    if accuracy is None:
        return None
    error = accuracy.max_abs_error
    return {**asdict(accuracy), "max_abs_error": error if math.isfinite(error) else None}


def _accuracy_from_json(data: Mapping[str, Any] | None) -> Accuracy | None:
    if data is None:
        return None
    error = data["max_abs_error"]
    return Accuracy(**{**data, "max_abs_error": error if error is not None else math.inf})
