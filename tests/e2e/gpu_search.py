"""What a search on a GPU must have measured, whatever server it ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.configuration.runtimes.spec import Precision
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from tests.e2e.tensorrt_rtx import FUSED_ATTENTION

LEAST_COSINE: Mapping[Precision, float] = {
    "fp32": 0.99999,
    "fp16": 0.999,
    "bf16": 0.99,
    "int8": 0.994,
}
"""To the FP32 reference. That of INT8 is what test_int8_accuracy.py demands on a CPU."""


@dataclass(frozen=True)
class SearchOnGpu:
    """A finished search on one GPU.

    Attributes:
        gpu_name: None for the rehearsal on a CPU.
    """

    study: StudyDirectory
    gpu_name: str | None

    @property
    def artifacts(self) -> dict[str, dict[str, Any]]:
        """The artefacts, by names such as "tensorrt/fp16/batch 1..1"."""
        rows = self.study.read_json(self.study.prepared)["artifacts"]
        return {row["artifact"].partition("/")[2]: row for row in rows}

    @property
    def records(self) -> list[TrialRecord]:
        return list(self.study.trials.read_all().values())

    def assert_near_the_reference(self, name: str) -> float:
        """Return the mean cosine of an artefact to the FP32 reference."""
        row = self.artifacts[name]
        assert row["dropped"] is None, f"{name}: {row['dropped']}"
        cosine: float = row["accuracy"]["mean_cosine"]
        assert cosine > LEAST_COSINE[name.split("/")[1]], f"{name}: {cosine}"  # type: ignore[index]
        assert row["instance_mib"] > 0, name
        return cosine

    def assert_measured(self, trials: int) -> None:
        """Every trial has a verdict, and the GPU was seen at work during each."""
        assert len(self.records) == trials
        for record in self.records:
            assert record.outcome in ("ok", "infeasible", "bounded"), record.reason
            assert record.measurement is not None
            machine = record.measurement.levels[0].machine
            assert machine is not None
            if self.gpu_name is not None:
                [use] = machine.gpus
                assert use.name == self.gpu_name
                assert (use.utilization_percent or 0) > 0


def fused_attentions(layers: Sequence[str]) -> int:
    """Count the layers that are a whole attention, in the names of an engine's layers."""
    return sum(name.startswith(FUSED_ATTENTION) for name in layers)
