from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.workload.data_types import FLOATING, NUMPY_TYPES, DataType
from optimizer.workload.request_sizes import Dimension, LengthDistribution, padded_length
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, TensorSpec, Workload, stack

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


BOUNDED = [name for name in NUMPY_TYPES if name not in ("BOOL", "BYTES")]


@given(data_type=st.sampled_from(BOUNDED), data=st.data(), seed=st.integers(0, 2**32))
def test_values_of_every_numeric_type_keep_to_their_bounds(
    data_type: DataType, data: st.DataObject, seed: int
) -> None:
    # Integers up to 2**53 and eighths up to 2**4 are the same numbers in the type and as bounds.
    values = st.integers(-128, 128).map(lambda eighths: eighths / 8)
    if data_type not in FLOATING:
        limits = np.iinfo(NUMPY_TYPES[data_type])
        whole = st.integers(max(limits.min, -(2**53)), min(limits.max, 2**53))
        values = whole.map(float)
    low, high = sorted((data.draw(values), data.draw(values)))
    payloads = Payloads((TensorSpec("x", data_type, (3, 5), low, high),))
    [request] = payloads.sample(1, np.random.default_rng(seed), batch_size=2)
    assert request["x"].dtype == NUMPY_TYPES[data_type]
    assert request["x"].shape == (2, 3, 5)
    drawn = request["x"].astype(np.float64)
    assert (drawn >= low).all()
    assert (drawn <= high).all()


@pytest.mark.parametrize(
    ("data_type", "low", "high"),
    [("UINT64", 0, 2**64 - 2048), ("INT64", -(2**63), 2**63 - 1024), ("INT8", -128, 127)],
)
def test_integers_reach_both_halves_of_their_type(
    data_type: DataType, low: float, high: float
) -> None:
    payloads = Payloads((TensorSpec("x", data_type, (1000,), low, high),))
    [request] = payloads.sample(1, np.random.default_rng(0))
    drawn = request["x"].astype(object)
    middle = (int(low) + int(high)) // 2
    assert drawn.min() < middle < drawn.max()


@pytest.mark.parametrize(
    ("data_type", "choices", "drawn"),
    [
        ("BOOL", (False, True), {False, True}),
        ("BYTES", ("", "zwölf", "two words"), {b"", "zwölf".encode(), b"two words"}),
        ("UINT64", (0, 2**64 - 1), {0, 2**64 - 1}),
        ("INT64", (-(2**63),), {-(2**63)}),
        ("FP16", (0.5, -2.0), {0.5, -2.0}),
        ("BF16", (1.5,), {1.5}),
    ],
)
def test_listed_values_are_drawn_exactly(
    data_type: DataType, choices: tuple[bool | float | str, ...], drawn: set[object]
) -> None:
    spec = TensorSpec("x", data_type, (20,), choices=choices)
    [request] = Payloads((spec,)).sample(1, np.random.default_rng(0), batch_size=3)
    assert request["x"].dtype == NUMPY_TYPES[data_type]
    assert request["x"].shape == (3, 20)
    assert set(request["x"].ravel().tolist()) == drawn
    assert spec.example == choices[0]


def test_texts_are_padded_with_empty_ones() -> None:
    texts = TensorSpec("x", "BYTES", ("length",), choices=("word",))
    for request in Payloads((texts,), LENGTHS).sample(9, np.random.default_rng(1)):
        drawn = request["x"].ravel().tolist()
        assert len(drawn) == 64
        assert drawn == [b"word"] * drawn.count(b"word") + [b""] * drawn.count(b"")
        assert drawn.count(b"word") in LENGTHS.lengths


OCR = Payloads(
    (
        TensorSpec("image", "UINT8", (3, "height", "width"), 0, 255),
        TensorSpec("mask", "BOOL", ("width", "length"), choices=(True,)),
        TensorSpec("audio", "FP32", ("samples",), -1, 1),
    ),
    LENGTHS,
    (
        Dimension("height", LengthDistribution((32, 48), (1, 1))),
        Dimension("width", LengthDistribution(tuple(range(1, 100)), (1,) * 99)),
        Dimension("doubled", None, of="width", times=2),
        Dimension("samples", None, of="doubled", times=10, plus=400),
    ),
)


@given(seed=st.integers(0, 2**32), batch_size=st.integers(1, 3), batched=st.booleans())
def test_a_named_dimension_has_one_size_in_all_tensors_of_a_request(
    seed: int, batch_size: int, batched: bool
) -> None:
    payloads = replace(OCR, batched=batched)
    size = batch_size if batched else 1
    requests = payloads.sample(4, np.random.default_rng(seed), (16,), size)
    for request in requests:
        batch = (size,) if batched else ()
        *_, height, width = request["image"].shape
        length = request["mask"].shape[-1]
        assert height in (32, 48)
        assert 1 <= width < 100
        assert length in (16, 64)
        assert request["image"].shape == (*batch, 3, height, width)
        assert request["mask"].shape == (*batch, width, length)
        assert request["audio"].shape == (*batch, 20 * width + 400)


def test_other_dimensions_are_drawn_by_their_weights_and_anew_for_each_request() -> None:
    heights = Dimension("height", LengthDistribution((32, 48), (1, 3)))
    spec = TensorSpec("x", "INT8", ("height",), 0, 1)
    drawn = Payloads((spec,), dimensions=(heights,)).sample(2000, np.random.default_rng(2))
    assert np.mean([each["x"].shape == (1, 48) for each in drawn]) == pytest.approx(0.75, abs=0.05)


def test_largest_and_smallest_sizes_follow_each_other() -> None:
    largest = {"length": 64, "height": 48, "width": 99, "doubled": 198, "samples": 2380}
    assert OCR.largest_sizes() == largest
    assert OCR.largest_sizes(20) == {**largest, "length": 20}
    assert OCR.smallest_sizes() == {
        "length": 8, "height": 32, "width": 1, "doubled": 2, "samples": 420,
    }  # fmt: skip
    for request in OCR.largest().sample(3, np.random.default_rng(3)):
        assert {name: array.shape[1:] for name, array in request.items()} == {
            spec.name: spec.sized(largest) for spec in OCR.tensors
        }


def test_a_scalar_without_a_batch_axis_has_no_axis() -> None:
    rate = TensorSpec("rate", "INT64", (), choices=(16000,))
    [request] = Payloads((rate,), batched=False).sample(1, np.random.default_rng(0))
    assert (request["rate"].shape, request["rate"].item()) == ((), 16000)
    assert stack([request]) == request, "a batch of one is the request"


def test_an_axis_without_a_name_is_the_length() -> None:
    assert IDS.shape == IDS.free == ("length",)


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
