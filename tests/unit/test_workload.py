from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.workload.streams import (
    LatencyLimit,
    LengthDistribution,
    Payloads,
    Stream,
    TensorSpec,
    Workload,
    padded_length,
    stack,
)

IDS = TensorSpec("input_ids", "INT64", (None,), minimum=5, maximum=9, pad=0)
MASK = TensorSpec("attention_mask", "INT32", (None,), minimum=1, maximum=1, pad=0)
IMAGE = TensorSpec("image", "FP32", (3, 4), minimum=-0.5, maximum=0.5)
LENGTHS = LengthDistribution(lengths=(8, 20, 64), weights=(1, 2, 1))


@pytest.mark.parametrize(
    ("length", "padding", "padded"),
    [
        pytest.param(8, (), 64, id="no buckets: the workload's longest"),
        pytest.param(8, (16, 32, 64), 16, id="the shortest bucket that holds it"),
        pytest.param(16, (16, 32), 16, id="a bucket holds its own length"),
        pytest.param(17, (16, 32), 32, id="one more needs the next"),
        pytest.param(33, (16, 32), 64, id="above every bucket: the workload's longest"),
        pytest.param(8, (32, 16), 16, id="the order of the buckets is free"),
        pytest.param(8, (128,), 128, id="a bucket may exceed the longest"),
    ],
)
def test_padded_length(length: int, padding: tuple[int, ...], padded: int) -> None:
    assert padded_length(length, padding, LENGTHS) == padded


@given(
    length=st.sampled_from(LENGTHS.lengths),
    padding=st.lists(st.integers(1, 128), max_size=5).map(tuple),
)
def test_padding_never_cuts_and_yields_few_lengths(length: int, padding: tuple[int, ...]) -> None:
    padded = padded_length(length, padding, LENGTHS)
    assert padded >= length
    assert padded in {*padding, LENGTHS.longest}


def test_a_request_carries_its_own_length_and_then_the_padding() -> None:
    payloads = Payloads((IDS, MASK), LENGTHS)
    for request in payloads.sample(50, np.random.default_rng(0), padding=(16, 32)):
        ids, mask = request["input_ids"], request["attention_mask"]
        length = int(mask.sum())
        assert length in LENGTHS.lengths
        assert ids.shape == mask.shape == (1, {8: 16, 20: 32, 64: 64}[length])
        assert [ids.dtype.name, mask.dtype.name] == ["int64", "int32"]
        assert ids[0, :length].astype(int).min() >= 5
        assert (ids[0, length:] == 0).all()
        assert (mask[0, :length] == 1).all()


def test_integer_bounds_are_inclusive() -> None:
    payloads = Payloads((IDS,), LengthDistribution((64,), (1,)))
    drawn = np.concatenate(
        [r["input_ids"].ravel() for r in payloads.sample(20, np.random.default_rng(1))]
    )
    assert set(drawn.tolist()) == {5, 6, 7, 8, 9}


def test_fixed_shapes_are_not_padded() -> None:
    [request] = Payloads((IMAGE,), LENGTHS).sample(1, np.random.default_rng(2), padding=(128,))
    assert request["image"].shape == (1, 3, 4)
    assert request["image"].dtype == np.float32
    assert (np.abs(request["image"]) <= 0.5).all()


def test_the_same_seed_draws_the_same_requests() -> None:
    payloads = Payloads((IDS, MASK), LENGTHS)
    first = payloads.sample(5, np.random.default_rng(3))
    again = payloads.sample(5, np.random.default_rng(3))
    for one, other in zip(first, again, strict=True):
        assert all((one[name] == other[name]).all() for name in ("input_ids", "attention_mask"))


def test_lengths_occur_by_their_weights() -> None:
    drawn = LENGTHS.sample(20_000, np.random.default_rng(4))
    shares = [float((drawn == length).mean()) for length in LENGTHS.lengths]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert LENGTHS.longest == 64


def test_stack_joins_equal_shapes() -> None:
    payloads = Payloads((IDS, MASK), LENGTHS)
    requests = payloads.sample(4, np.random.default_rng(5))
    batch = stack(requests)
    assert batch["input_ids"].shape == (4, 64)
    assert (batch["attention_mask"][2] == requests[2]["attention_mask"][0]).all()


def test_stack_refuses_unequal_shapes() -> None:
    requests = Payloads((IDS,), LENGTHS).sample(30, np.random.default_rng(6), padding=(8, 20))
    with pytest.raises(ValueError, match="dimension"):
        stack(requests)


def test_the_demand_is_that_of_all_streams() -> None:
    payloads = Payloads((IDS,), LENGTHS)
    limit = LatencyLimit(percentile=95, latency_ms=500)
    streams = tuple(
        Stream(name, "bert", "poisson", payloads, limit, demand)
        for name, demand in (("short", 300.0), ("long", 200.0))
    )
    assert Workload(streams).demand_per_second == 500
