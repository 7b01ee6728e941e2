"""Two models that share a machine, predicted and measured: `python -m tests.benchmarks.two_models`.

Searches `search_spaces/two_models.yaml` on the real server. Then predicts other configurations from
the calibration alone and measures them, and measures the recommended configuration again at its
capacity: both models must be within their limits.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.api import load_space, measure, run
from optimizer.commands.simulate import predicted_serving
from optimizer.configuration.model_space import Position
from optimizer.configuration.serving_config import describe
from optimizer.search.surrogate.learnt_forecast import calibrated
from optimizer.space_file.reader import Space

SPACE = Path("search_spaces/two_models.yaml")


def fixed(space: Space, position: Position) -> Space:
    """The space whose only point is this one."""
    searched = space.search_space
    parameters = tuple(
        replace(parameter, values=(parameter.values[at],))
        for parameter, at in zip(searched.parameters, position, strict=True)
    )
    return replace(space, search_space=replace(searched, parameters=parameters))


def others(study: StudyReading, count: int) -> list[Position]:
    """Points that calibration runs and the baseline's trial did not measure, drawn at random."""
    space = study.searched.search_space
    calibrated_with = {record.config for record in (*study.calibration, study.trials[0])}
    every = [space.at(row) for row in np.random.default_rng(5).permutation(len(space))]
    return [point for point in every if space.config(point) not in calibrated_with][:count]


def compare(study: StudyReading, space: Space, count: int, results: Path) -> None:
    """Print predictions from the calibration and the baseline's trial beside measurements."""
    workload, searched = study.searched.workload, study.searched.search_space
    service = calibrated((*study.calibration, study.trials[0]), workload)
    errors = []
    for position in others(study, count):
        config = searched.config(position)
        predicted = predicted_serving(workload, config, service, seed=0).capacity
        measured = measure(fixed(space, position), results=results).result.load_test
        saturation = sum(stream.achieved_per_second for stream in measured.levels[0].streams)
        capacity = measured.measurement.capacity_per_second if measured.measurement else 0.0
        errors.append(
            (predicted.saturation.per_second / saturation - 1, predicted.per_second / capacity - 1)
        )
        print(
            f"{describe(config)}\n"
            f"  saturation {predicted.saturation.per_second:.0f}/s, measured {saturation:.0f}/s "
            f"({errors[-1][0]:+.0%}); capacity {predicted.per_second:.0f}/s, measured "
            f"{capacity:.0f}/s ({errors[-1][1]:+.0%})",
            flush=True,
        )
    for name, own in zip(("saturation", "capacity"), np.abs(errors).T, strict=True):
        print(
            f"{name}: error of the median {np.median(own):.1%}, of 90 % {np.quantile(own, 0.9):.1%}"
        )


def held(study: StudyReading, space: Space, results: Path, times: int) -> None:
    """Measure the recommended configuration at its capacity; print each model's latency."""
    best = study.own_decision.best
    assert best is not None, "nothing was within the limits"
    position = study.searched.search_space.position_of(best.config)
    assert position is not None, "the recommended configuration is a point of the space"
    rate = best.candidate.measurement.capacity_per_second
    print(f"recommended: {describe(best.config)}, {rate:.0f}/s")
    for seed in range(1, times + 1):
        test = measure(
            fixed(space, position), rate_per_second=rate, seed=seed, results=results
        ).result.load_test
        shown = ", ".join(
            f"{level.name} p{level.limit_percentile:g} "
            f"{level.latency_ms(level.limit_percentile):.1f} of {level.limit_ms:g} ms"
            for level in test.shown.streams
        )
        print(f"  measured again: {shown}; {test.missed or 'within both limits'}", flush=True)


def main() -> None:
    """Search, predict and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/benchmarks/two_models"))
    parser.add_argument("--count", type=int, default=12, help="configurations to predict")
    parser.add_argument("--times", type=int, default=3, help="measurements of the recommended one")
    options = parser.parse_args()
    space = load_space(SPACE)
    run(space, results=options.results)
    study = read_study(options.results, space.study)
    held(study, space, options.results, options.times)
    compare(study, space, options.count, options.results)


if __name__ == "__main__":
    main()
