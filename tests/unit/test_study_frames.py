from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec, ModelServing, ServingConfig
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.report.study_frames import measured_levels_frame, trials_frame
from tests.unit.studies import HARDWARE, VALUES, level, ok, record_of, small_space
from tests.unit.tables import WORKLOAD


def test_a_level_has_the_servers_own_times_where_they_are_known() -> None:
    split = ServerSplit(
        "bert", 100, 4.0, 0.5, 10.0, 0.25, (BatchPoint(4, 20, 9.0), BatchPoint(2, 10, 8.0))
    )
    seen = replace(level(0.5, 50.0), server=(replace(split, model="other"), split))
    config = ServingConfig(
        (ModelServing("bert", ArtifactSpec("bert", "openvino", "python", "fp32")),)
    )
    frame = measured_levels_frame(config, [seen, level(0.6, 55.0)], WORKLOAD)
    assert list(frame.level) == [0, 1]
    known, unknown = frame.iloc[0], frame.iloc[1]
    assert known.queue_ms == 4.0
    assert known.compute_ms == 10.75
    assert known.mean_batch_size == pytest.approx(100 / 30)
    assert known.client_lag_ms == 0.0
    assert unknown[["queue_ms", "compute_ms", "mean_batch_size"]].isna().all()


def test_what_is_served_is_told_in_the_words_of_the_space_file() -> None:
    space = small_space(preferred_batch_sizes=("none", "half"), max_queue_delay_us=(500,))
    configs = [space.config(space.at(row)) for row in range(len(space))]
    frame = trials_frame([record_of(n, c, ok(100)) for n, c in enumerate(configs)], space)
    batching = frame[frame.batching.astype(bool)]
    alone = frame[~frame.batching.astype(bool)]
    assert set(batching.preferred_batch_sizes) == {"none", "2", "4", "8"}
    assert set(batching.max_queue_delay_us) == {500.0}
    assert set(alone.max_batch_size) == {1}
    assert alone.preferred_batch_sizes.isna().all()
    assert set(frame.padding) == {"max"}
    assert set(frame.instance_count) == {1, 2}
    assert set(frame.intra_op_threads) == {1, 2}


def test_several_models_have_columns_of_their_own() -> None:
    few = {**VALUES, "batching": (False,), "precision": ("fp32",), "intra_op_threads": (1,)}
    parameters = (*parameters_in_order("one", few), *parameters_in_order("two", few))
    space = SearchSpace(parameters, HARDWARE)
    config = space.config(space.baseline)
    frame = trials_frame([record_of(0, config, ok(100))], space)
    assert list(frame["one.runtime"]) == list(frame["two.runtime"]) == ["pytorch"]
    assert "runtime" not in frame


def test_instances_on_gpus_are_those_of_each() -> None:
    gpus = tuple(Gpu(f"GPU-{n}", "NVIDIA A10G", (8, 6), 24_000) for n in range(2))
    space = small_space(
        hardware=Hardware(4, 24_000, gpus), runtime=("pytorch",), precision=("fp32",),
        batching=(False,), instance_count=(2, (1, 2)), intra_op_threads=(1,),
    )  # fmt: skip
    configs = [space.config(space.at(row)) for row in range(len(space))]
    frame = trials_frame([record_of(n, c, ok(100)) for n, c in enumerate(configs)], space)
    assert set(frame.instance_count) == {2, "1/2"}
    assert frame.intra_op_threads.isna().all()


def test_latencies_stand_beside_the_load_that_they_were_measured_at() -> None:
    extrapolated = ok(174)
    assert extrapolated.measurement is not None
    levels = (level(0.4, kind="saturation"), level(0.174, 77.0))
    measurement = replace(extrapolated.measurement, levels=levels)
    record = record_of(0, small_space().config(small_space().baseline), ok(174))
    frame = trials_frame([replace(record, measurement=measurement)], small_space())
    assert frame.capacity_per_second[0] == pytest.approx(174)
    assert frame.p95_ms_at_capacity[0] == 77.0
    assert frame.latencies_at_per_second[0] == pytest.approx(87)
