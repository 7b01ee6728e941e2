"""What measures alone on a Ray cluster: the phases of a run besides the search use one worker."""

from __future__ import annotations

from typing import Any, TypeVar

from optimizer.cluster.ray_pool import RayPool
from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.certification import CertificationTask
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.evaluator import WinnerTestFunction

_Result = TypeVar("_Result")


def _call(evaluator: Any, slot: Slot, method: str, *arguments: Any) -> Any:
    return getattr(evaluator, method)(*arguments)


class RayEvaluator:
    """An `Evaluator` and a `Confirmer` that use any one worker of a pool, on its own slot."""

    def __init__(self, pool: RayPool) -> None:
        self._pool = pool

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """Find the capacity, see `Evaluator.evaluate`."""
        evaluation: Evaluation = self._run("evaluate", config, slot, prune_below, expected_share)
        return evaluation

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Measure the saturation rate, see `Evaluator.saturate`."""
        evaluation: Evaluation = self._run("saturate", config, slot)
        return evaluation

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Measure saturation and a light load, see `Evaluator.calibrate`."""
        evaluation: Evaluation = self._run("calibrate", config, slot)
        return evaluation

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        """Measure a finalist again, see `Confirmer.confirm`."""
        evaluation: Evaluation = self._run("confirm", config, slot, task)
        return evaluation

    def run_winner_test(
        self,
        test: WinnerTestFunction[_Result],
        config: ServingConfig,
        load_factor: float,
        seconds: float,
    ) -> _Result:
        """Measure the winner further, see `WinnerTester.run_winner_test`."""
        result: _Result = self._run("run_winner_test", test, config, load_factor, seconds)
        return result

    def _run(self, method: str, *arguments: Any) -> Any:
        return self._pool.evaluate(_call, method, *arguments)
