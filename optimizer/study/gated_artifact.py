"""The accuracy gate of one artefact: the shapes it must pass, its result, and prepared.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.artifacts.accuracy import Accuracy, FailingBatch
from optimizer.configuration.model_graph import NO_GRAPH, ModelGraph
from optimizer.configuration.serving_config import ArtifactSpec, ArtifactUse, ServingConfig
from optimizer.measurement.host_share import HostTiming
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.events import ArtifactReady, Note, Watcher
from optimizer.study.record_store import RecordStore
from optimizer.study.trial_records import wrong_answers_record
from optimizer.workload.streams import Payloads


@dataclass(frozen=True)
class GatePlan:
    """The shapes that configurations of one artefact can have it execute.

    Attributes:
        lengths: padded request lengths in tokens, the longest first.
        max_batch_sizes: of the configurations, ascending.
        request_size: inferences in one request, the smallest batch.
        most_instances: of the configurations, on a device.
        cuda_graphs: whether one of the configurations records CUDA graphs. The gate then records
            them for all lengths, so that it judges them and measures their memory.
    """

    lengths: tuple[int, ...]
    max_batch_sizes: tuple[int, ...]
    request_size: int = 1
    most_instances: int = 1
    cuda_graphs: bool = False

    @classmethod
    def of(cls, use: ArtifactUse, payloads: Payloads, request_size: int) -> GatePlan:
        """Return a plan for everything that the points of a space can send to one artefact."""
        lengths = {n for padding in use.paddings for n in payloads.sent_lengths(padding)}
        longest_first = tuple(sorted(lengths, reverse=True))
        return cls(
            longest_first, use.max_batch_sizes, request_size, use.most_instances, use.cuda_graphs
        )

    @property
    def largest(self) -> int:
        """The largest max_batch_size."""
        return self.max_batch_sizes[-1]

    def batches(self, largest: int) -> tuple[int, ...]:
        """Return the batch sizes to test on a server whose max_batch_size is `largest`.

        These are the largest batch that whole requests fill, and one of an odd number of requests;
        none where only one request fits.
        """
        requests = largest // self.request_size
        odd = requests // 2 | 1
        counts = [n for n in (requests, odd) if 1 < n <= requests]
        return tuple(n * self.request_size for n in dict.fromkeys(counts))

    def below(self, batch: int) -> tuple[int, ...]:
        """Return the values of max_batch_size below a batch that hold at least two requests."""
        return tuple(n for n in self.max_batch_sizes if 2 * self.request_size <= n < batch)

    def tested_sizes(self, largest: int | None) -> tuple[int, ...]:
        """Return the tested batch sizes, ascending, where `largest` is the largest that passed."""
        passed: Sequence[int] = self.batches(largest) if largest is not None else ()
        return tuple(sorted({self.request_size, *passed}))


@dataclass(frozen=True)
class GatedShapes:
    """The shapes at which an artefact answered correctly: each batch size at each length."""

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class GatedArtifact:
    """An artefact and the result of its accuracy gate.

    Attributes:
        instance_mib: memory that one instance takes; of a step of a pipeline that which a second
            one takes, and of the pipeline that of all its models with an instance of each. None
            where it could not be measured, and for a step that never has a second instance.
        dropped: why the artefact left the space.
        shapes: at which its answers are correct; None where it was not served.
        failing: the smallest wrong batch; configurations that reach it left the space.
        timings: execution times in Triton's Python backend and without a server; empty where they
            were not measured.
        int8_share: of the model's multiply-accumulates that are in INT8; None without INT8.
        host_mib: as instance_mib, the machine's memory for an instance on a GPU; None on a CPU.
    """

    spec: ArtifactSpec
    sha256: str | None = None
    build_seconds: float = 0.0
    accuracy: Accuracy | None = None
    instance_mib: float | None = None
    dropped: str | None = None
    shapes: GatedShapes | None = None
    failing: FailingBatch | None = None
    timings: tuple[HostTiming, ...] = ()
    int8_share: float | None = None
    host_mib: float | None = None

    def covers(self, plan: GatePlan) -> bool:
        """Whether the gate's result is valid for every shape of a plan."""
        if self.dropped is not None:
            return True
        if self.shapes is None or not set(plan.lengths) <= set(self.shapes.lengths):
            return False
        required = plan.batches(plan.largest) or (plan.request_size,)
        return self.failing is not None or set(required) <= set(self.shapes.batch_sizes)


def memory_mib(
    measured: Mapping[ArtifactSpec, float | None], graph: ModelGraph | None
) -> dict[ArtifactSpec, float]:
    """Return the memory of an instance of each artefact, where it was measured.

    A pipeline gets what is left of the whole when its steps have one instance each.

    Args:
        measured: `GatedArtifact.instance_mib` or `host_mib` by artefact.
    """
    known = {spec: mib for spec, mib in measured.items() if mib is not None}
    largest: dict[str, float] = {}
    for spec, own_mib in known.items():
        largest[spec.model] = max(own_mib, largest.get(spec.model, 0.0))
    graph = graph or NO_GRAPH
    return {
        spec: max(0.0, own_mib - sum(largest.get(step, 0.0) for step in graph.below(spec.model)))
        for spec, own_mib in known.items()
    }


def ready_event(result: GatedArtifact) -> ArtifactReady:
    """Return the event that reports an artefact."""
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
        "host_mib": result.host_mib,
        "dropped": result.dropped,
        "shapes": asdict(result.shapes) if result.shapes is not None else None,
        "failing_batch": asdict(result.failing) if result.failing is not None else None,
        "timings": [asdict(timing) for timing in result.timings],
        "int8_share": result.int8_share,
    }


def from_json(row: Mapping[str, Any], spec: ArtifactSpec) -> GatedArtifact | None:
    """Return the artefact of a row; None where the row predates the recording of shapes."""
    if row.get("shapes") is None:
        return None
    shapes, failing = row["shapes"], row["failing_batch"]
    return GatedArtifact(
        spec=spec,
        sha256=row["sha256"],
        build_seconds=0.0,
        accuracy=_accuracy_from_json(row["accuracy"]),
        instance_mib=row["instance_mib"],
        host_mib=row.get("host_mib"),
        dropped=row["dropped"],
        shapes=GatedShapes(tuple(shapes["batch_sizes"]), tuple(shapes["lengths"])),
        failing=FailingBatch(**failing) if failing is not None else None,
        timings=tuple(HostTiming(**timing) for timing in row["timings"]),
        int8_share=row.get("int8_share"),
    )


def accuracy_to_json(accuracy: Accuracy | None) -> dict[str, Any] | None:
    """Return an accuracy as JSON, which has no infinity: an infinite error becomes null."""
    if accuracy is None:
        return None
    error = accuracy.max_abs_error
    return {**asdict(accuracy), "max_abs_error": error if math.isfinite(error) else None}


def _accuracy_from_json(data: Mapping[str, Any] | None) -> Accuracy | None:
    if data is None:
        return None
    error = data["max_abs_error"]
    return Accuracy(**{**data, "max_abs_error": error if error is not None else math.inf})


def wrong_answers_reason(config: ServingConfig, gated: Sequence[GatedArtifact]) -> str | None:
    """Return why a configuration answers wrongly, None where the gate found no fault.

    The answers of an artefact that could not be served were not judged.
    """
    by_spec = {result.spec: result for result in gated if result.shapes is not None}
    for model in config.models:
        result = by_spec.get(model.artifact)
        if result is None:
            continue
        if result.dropped is not None:
            return result.dropped
        if result.failing is not None and model.max_batch_size >= result.failing.size:
            return result.failing.reason
    return None


def reject_wrong_answers(
    store: RecordStore,
    records: Mapping[int, TrialRecord],
    gated: Sequence[GatedArtifact],
    watch: Watcher,
) -> Mapping[int, TrialRecord]:
    """Return a study's records, with those whose answers proved wrong marked infeasible.

    An earlier run, whose gate tested fewer shapes, measured them.

    Args:
        records: all that are in the store, by number.

    Raises:
        StorageError: when one that is marked cannot be written.
    """
    judged = dict(records)
    for number, record in records.items():
        reason = wrong_answers_reason(record.config, gated)
        if reason is not None and record.outcome == "ok":
            judged[number] = wrong_answers_record(record, reason)
            store.write(judged[number])
            watch(Note(f"trial {number} is infeasible: {judged[number].reason}", True))
    return judged
