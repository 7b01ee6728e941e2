from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.search_space import SearchSpace
from optimizer.search.published_grid import (
    published_configurations,
    published_positions,
    published_space,
)

VALUES: Mapping[str, Sequence[Value]] = {
    "runtime": ("pytorch", "openvino"),
    "precision": ("fp32", "int8"),
    "batching": (False, True),
    "max_batch_size": (4, 8, 16),
    "preferred_batch_sizes": ("none", "half"),
    "max_queue_delay_us": (0, 1000),
    "instance_count": (1, 2),
    "intra_op_threads": (1, 2),
    "padding": ("max",),
}
SPACE = SearchSpace(parameters_in_order("bert", VALUES), Hardware(cores=2, memory_mib=8000))
ON_A_GPU = SearchSpace(
    parameters_in_order(
        "bert", {**VALUES, "runtime": ("pytorch", "tensorrt"), "precision": ("fp32", "fp16")}
    ),
    Hardware(4, 16_000, gpus=(Gpu("GPU-0", "Tesla T4", (7, 5), 15_360),)),
)


def test_on_a_cpu_pytorch_stands_against_openvino_under_the_published_names() -> None:
    eight = published_configurations(SPACE)
    assert [each.name for each in eight] == [
        "pt-base", "pt-db", "pt-ig", "pt-ig-db", "ov-base", "ov-db", "ov-ig", "ov-db-ig",
    ]  # fmt: skip
    assert len({each.config for each in eight}) == 8
    for each in eight:
        [model] = each.config.models
        assert model.artifact.precision == "fp32"
        assert model.artifact.runtime == ("pytorch" if each.name.startswith("pt") else "openvino")
        assert (model.batching is not None) == ("db" in each.name)
        assert model.groups[0].count == (2 if "ig" in each.name else 1)
        assert model.groups[0].count * model.groups[0].threads == 2, "all cores, shared"
        if model.batching is not None:
            assert model.max_batch_size == 16
            assert model.batching.preferred_batch_sizes == ()
            assert model.batching.max_queue_delay_us == 0


def test_on_a_gpu_pytorch_stands_against_tensorrt() -> None:
    eight = published_configurations(ON_A_GPU)
    runtimes = {each.name: each.config.models[0].artifact.runtime for each in eight}
    assert runtimes["trt-db-ig"] == "tensorrt"
    assert runtimes["pt-ig-db"] == "pytorch"
    assert all(each.config.models[0].groups[0].kind == "KIND_GPU" for each in eight)


@pytest.mark.parametrize("space", [SPACE, ON_A_GPU], ids=["cpu", "gpu"])
def test_whatever_the_eight_are_served_from_is_built(space: SearchSpace) -> None:
    needed = {spec for each in published_configurations(space) for spec in each.artifacts}
    assert needed == set(published_space(space).artifacts)


def test_what_is_built_for_the_eight_holds_them_all() -> None:
    space = published_space(SPACE)
    assert all(
        space.position_of(each.config) is not None for each in published_configurations(SPACE)
    )
    assert {spec.precision for spec in space.artifacts} == {"fp32"}


def test_all_eight_are_found_in_a_space_that_holds_them() -> None:
    found = published_positions(SPACE)
    configs = {each.name: each.config for each in published_configurations(SPACE)}
    assert {name: SPACE.config(at) for name, at in found.items() if at is not None} == configs


def test_those_that_a_space_does_not_hold_have_no_position() -> None:
    values = {**VALUES, "runtime": ("onnxruntime", "openvino"), "instance_count": (1,)}
    smaller = replace(SPACE, parameters=parameters_in_order("bert", values))
    found = published_positions(smaller)
    assert {name for name, at in found.items() if at is not None} == {"ov-base", "ov-db"}
    assert found["pt-base"] is None


def test_the_nearest_batch_size_will_do() -> None:
    values = {**VALUES, "preferred_batch_sizes": ("half",), "max_queue_delay_us": (500,)}
    other = replace(SPACE, parameters=parameters_in_order("bert", values))
    position = published_positions(other)["ov-db"]
    assert position is not None
    [model] = other.config(position).models
    assert model.batching is not None
    assert model.batching.max_queue_delay_us == 500
