"""The shapes that an engine takes, and what else one build needs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from optimizer.artifacts.engines.recipe import input_shapes
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import EngineProfile
from optimizer.workload.request_sizes import LengthDistribution, padded_length
from optimizer.workload.streams import Payloads, TensorSpec
from tests.unit.engines import PAYLOADS, PROFILE, recipe

sizes = st.integers(1, 512)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Payloads, EngineProfile]:
    lengths = tuple(draw(st.lists(sizes, min_size=1, max_size=5)))
    weights = tuple(draw(st.floats(0.1, 1)) for _ in lengths)
    axes = draw(st.lists(st.lists(st.none() | sizes, max_size=3), min_size=1, max_size=3))
    tensors = [TensorSpec(f"t{n}", "INT64", tuple(own), 0, 1) for n, own in enumerate(axes)]
    most = draw(sizes)
    profile = EngineProfile(draw(st.integers(1, most)), most)
    return Payloads(tuple(tensors), LengthDistribution(lengths, weights)), profile


@given(cases(), st.data())
def test_least_optimal_and_most_are_in_order_and_hold_every_request(
    case: tuple[Payloads, EngineProfile], data: st.DataObject
) -> None:
    payloads, profile = case
    shapes = {each.name: each for each in input_shapes(payloads, profile)}
    longest = payloads.lengths.longest
    length = data.draw(st.sampled_from(payloads.lengths.lengths))
    padding = tuple(data.draw(st.sets(st.integers(1, longest), max_size=3)))
    batch = data.draw(st.integers(1, profile.max_batch_size))
    for tensor in payloads.tensors:
        each = shapes[tensor.name]
        assert len(each.least) == len(each.optimal) == len(each.most) == len(tensor.shape) + 1
        own = padded_length(length, padding, payloads.lengths)
        asked = (batch, *(own if isinstance(axis, str) else axis or 0 for axis in tensor.shape))
        for low, best, here, high in zip(each.least, each.optimal, asked, each.most, strict=True):
            assert low <= best <= high
            assert low <= here <= high


def test_an_engine_is_fastest_for_the_longest_request_at_the_optimal_batch() -> None:
    [ids, mask] = input_shapes(PAYLOADS, PROFILE)
    assert (ids.name, mask.name) == ("input_ids", "attention_mask")
    assert (ids.least, ids.optimal, ids.most) == ((1, 16), (8, 128), (32, 128))


def test_only_an_engine_in_fp32_keeps_off_tf32() -> None:
    precisions: list[Precision] = ["fp32", "fp16", "bf16", "int8"]
    assert [recipe(precision).tf32 for precision in precisions] == [False, True, True, True]


def test_a_recipe_travels_as_json() -> None:
    data = json.loads(recipe("fp32").to_json())
    assert data["inputs"][0] == {
        "name": "input_ids",
        "least": [1, 16],
        "optimal": [8, 128],
        "most": [32, 128],
    }
    assert (data["workspace_mib"], data["optimization_level"], data["tf32"]) == (4096, 3, False)
    assert (data["gpu_name"], data["compute_capability"]) == ("NVIDIA A10G", [8, 6])
