"""Calibration and evaluation inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts.dataset_files import rows_from_file
from optimizer.artifacts.datasets import cropped, model_inputs, row_digest, rows_by_shape
from optimizer.errors import UsageError
from optimizer.workload.model_spec import AccuracyLimits, DataSet, ModelSpec, OnnxSource
from optimizer.workload.request_sizes import Dimension, LengthDistribution
from optimizer.workload.streams import Payloads, Tensors, TensorSpec

PAYLOADS = Payloads(
    tensors=(
        TensorSpec("ids", "INT64", (None,), minimum=5, maximum=99),
        TensorSpec("mask", "INT64", (None,), minimum=1, maximum=1),
        TensorSpec("score", "FP32", (3,), minimum=-1, maximum=1),
    ),
    lengths=LengthDistribution((4, 8), (0.5, 0.5)),
)
Arrays = dict[str, Any]


def model(calibration: DataSet, evaluation: DataSet, payloads: Payloads = PAYLOADS) -> ModelSpec:
    source = OnnxSource(Path("unused.onnx"))
    return ModelSpec("m", source, payloads, calibration, evaluation, AccuracyLimits(0.9, 0.9))


def good(rows: int = 6, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(5, 100, (rows, 8)),
        "mask": np.ones((rows, 8), np.int64),
        "score": rng.uniform(-1, 1, (rows, 3)),
    }


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_generated_sets_have_no_row_in_common_even_with_one_seed() -> None:
    one = model(DataSet(None, 20, seed=7), DataSet(None, 30, seed=7))
    first, again = model_inputs(one), model_inputs(one)
    calibration, evaluation = map(
        set, (map(row_digest, rows) for rows in (first.calibration, first.evaluation))
    )
    assert (len(first.calibration), len(first.evaluation)) == (20, 30)
    assert not calibration & evaluation
    assert [row_digest(r) for r in again.evaluation] == [row_digest(r) for r in first.evaluation]
    assert first.evaluation[0]["ids"].shape == (1, 8)


def test_rows_without_a_batch_axis_keep_their_scalars_as_arrays(tmp_path: Path) -> None:
    tensors = (
        TensorSpec("rate", "INT32", (), choices=(16000,)),
        TensorSpec("name", "BYTES", (), choices=("any",)),
        TensorSpec("mask", "BOOL", (2,), choices=(True,)),
    )
    path = tmp_path / "d.jsonl"
    path.write_text('{"rate": 8000, "name": "zwölf", "mask": [true, false]}\n')
    [row] = rows_from_file(path, 1, Payloads(tensors, batched=False))
    assert {name: (type(a), a.dtype.name, a.shape) for name, a in row.items()} == {
        "rate": (np.ndarray, "int32", ()),
        "name": (np.ndarray, "object", ()),
        "mask": (np.ndarray, "bool", (2,)),
    }
    assert (row["rate"].item(), row["name"].item()) == (8000, "zwölf".encode())


def test_draws_stay_clear_of_what_is_taken() -> None:
    few = Payloads(
        (TensorSpec("x", "INT32", (1,), minimum=0, maximum=19),), LengthDistribution((1,), (1.0,))
    )
    inputs = model_inputs(model(DataSet(None, 10, 0), DataSet(None, 10, 0), few))
    taken = {int(row["x"][0, 0]) for row in inputs.calibration}
    assert not taken & {int(row["x"][0, 0]) for row in inputs.evaluation}


def test_requests_that_are_all_alike_calibrate_and_are_judged() -> None:
    tensors = (
        TensorSpec("rate", "INT32", (1,), choices=(16000,)),
        TensorSpec("text", "BYTES", (1,), choices=("only",)),
    )
    inputs = model_inputs(model(DataSet(None, 2, 0), DataSet(None, 3, 0), Payloads(tensors)))
    assert (len(inputs.calibration), len(inputs.evaluation)) == (2, 3)
    for row in inputs.evaluation:
        assert (row["rate"].item(), row["text"].item()) == (16000, b"only")


def test_a_file_gives_its_first_rows_in_the_tensors_types(tmp_path: Path) -> None:
    arrays = good()
    rows = rows_from_file(save(tmp_path / "d.npz", arrays), 4, PAYLOADS)
    assert len(rows) == 4
    np.testing.assert_array_equal(rows[3]["ids"], arrays["ids"][3:4])
    assert rows[0]["score"].dtype == np.float32


def test_rows_shared_by_two_files_are_counted(tmp_path: Path) -> None:
    first, second = good(seed=0), good(seed=1)
    for name in second:
        second[name][:2] = first[name][3:5]
    calibration = DataSet(save(tmp_path / "c.npz", first), 6, 0)
    evaluation = DataSet(save(tmp_path / "e.npz", second), 6, 0)
    with pytest.raises(UsageError, match=r"e\.npz: 2 of 6 rows are used for calibration and"):
        model_inputs(model(calibration, evaluation))


def test_drawn_calibration_stays_clear_of_an_evaluation_file(tmp_path: Path) -> None:
    ten = Payloads(
        (TensorSpec("x", "INT32", (1,), minimum=0, maximum=9),), LengthDistribution((1,), (1.0,))
    )
    file = save(tmp_path / "e.npz", {"x": np.arange(9)[:, None]})
    inputs = model_inputs(model(DataSet(None, 3, 0), DataSet(file, 9, 0), ten))
    assert [int(row["x"][0, 0]) for row in inputs.calibration] == [9, 9, 9]


def change(name: str, values: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: values}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: {n: v for n, v in a.items() if n != "mask"}, "mask: is missing"),
        (change("x", np.zeros(6)), "x: is not an input; the inputs are ids, mask, score"),
        (change("score", np.zeros((6, 2))), r"score: must have shape \[rows, 3\], got \[6, 2\]"),
        (change("ids", np.zeros(6)), r"ids: must have shape \[rows, length\], got \[6\]"),
        (change("ids", np.full((2, 8), 9)), "ids: must have at least 4 rows, got 2"),
        (change("ids", np.full((6, 9), 9)), r"ids: must be 1 to 8 long \(longest request\), got"),
        (change("mask", np.ones((6, 7), int)), r"lengths: .*, got ids \[8\], mask \[7\]"),
        (change("ids", np.zeros((6, 8))), "ids: must hold integers, got float64"),
        (change("score", np.zeros((6, 3), int)), "score: must hold floating-point numbers"),
        (
            change("ids", np.full((6, 8), 100)),
            "ids: must be 5 to 99, or 0 as padding, got 100 in row 0",
        ),
        (change("score", np.full((6, 3), np.nan)), "score: must be -1 to 1, .* got nan in row 0"),
    ],
)
def test_mistakes_name_the_tensor_the_rule_and_the_value(
    tmp_path: Path, edit: Callable[[Arrays], Arrays], message: str
) -> None:
    path = save(tmp_path / "d.npz", edit(good()))
    with pytest.raises(UsageError, match=message) as caught:
        rows_from_file(path, 4, PAYLOADS)
    assert str(caught.value).startswith(f"{path} cannot be used:")


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", {"ids": np.zeros((6, 8))})
    with pytest.raises(UsageError) as caught:
        rows_from_file(path, 4, PAYLOADS)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "d.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"must be an \.npz file of plain arrays: "):
        rows_from_file(path, 1, PAYLOADS)


def test_a_single_array_and_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    save(tmp_path / "pickled.npz", {"ids": np.array([{}], object)})
    for name, message in [("one.npy", "it is one bare array"), ("pickled.npz", "plain arrays")]:
        with pytest.raises(UsageError, match=message):
            rows_from_file(tmp_path / name, 1, PAYLOADS)


def good_row(length: int = 8, token: int = 7) -> dict[str, Any]:
    return {"ids": [token] * length, "mask": [1] * length, "score": [0.5, -1, 1]}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def given(rows: list[dict[str, Any]]) -> DataSet:
    """The rows as a space file gives them."""
    tensors = {name: [row[name] for row in rows] for name in rows[0]}
    return DataSet(None, len(rows), 0, json.dumps(tensors))


def test_json_lines_are_padded_as_requests_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [good_row(3), good_row(8), "not read"])
    short, long = rows_from_file(path, 2, PAYLOADS)
    np.testing.assert_array_equal(short["ids"], [[7, 7, 7, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(short["mask"], [[1, 1, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(short["score"], np.array([[0.5, -1, 1]], np.float32))
    assert {name: (v.dtype, v.shape) for name, v in short.items()} == {
        name: (v.dtype, v.shape) for name, v in long.items()
    }
    assert short["ids"].dtype == np.int64
    assert short["score"].dtype == np.float32


def test_all_three_ways_give_the_same_rows(tmp_path: Path) -> None:
    rows = [good_row(4, token) for token in (5, 6, 7)]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    ways = [
        DataSet(save(tmp_path / "d.npz", arrays), 3, 0),
        DataSet(write_lines(tmp_path / "d.jsonl", rows), 3, 0),
        given(rows),
    ]
    first, *others = [
        [row_digest(r) for r in model_inputs(model(DataSet(None, 2, 0), way)).evaluation]
        for way in ways
    ]
    assert len(set(first)) == 3
    assert others == [first, first]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'ids'", "row 1: must be a JSON object of values by input, got \"{'ids'\""),
        ([1, 2], r"row 1: must be a JSON object of values by input, got \[1, 2\]"),
        ("", "row 1: must be a JSON object of values by input, got ''"),
        ({**good_row(), "ids": [[7], 7]}, "row 1: ids must be a regular list of numbers, got"),
        ({**good_row(), "ids": 7}, r"row 1: ids: must have shape \[rows, length\], got \[1\]"),
        ({**good_row(), "ids": ["a"] * 8}, "row 1: ids: must hold integers, got <U1"),
        ({**good_row(), "ids": [7.5] * 8}, "row 1: ids: must hold integers, got float64"),
        ({**good_row(), "ids": [None] * 8}, "row 1: ids: must hold integers, got object"),
        (good_row(9), r"row 1: ids: must be 1 to 8 long \(longest request\), got \[9\]"),
        (good_row(0), r"row 1: ids: must be 1 to 8 long \(longest request\), got \[0\]"),
        (good_row(token=100), "row 1: ids: must be 5 to 99, or 0 as padding, got 100$"),
        (
            {**good_row(), "mask": [1]},
            r"row 1: lengths: .* every tensor, got ids \[8\], mask \[1\]",
        ),
        ({**good_row(), "score": [1, 2, 0]}, "row 1: score: must be -1 to 1, .* got 2.0$"),
        (
            {**good_row(), "score": [1, 0]},
            r"row 1: score: must have shape \[rows, 3\], got \[1, 2\]",
        ),
        ({**good_row(), "score": "NaN"}, "row 1: score: must have shape"),
        ({**good_row(), "x": 1}, "row 1: x: is not an input; the inputs are ids, mask, score"),
        ({"ids": [7]}, "row 1: mask: is missing"),
    ],
)
def test_mistakes_of_json_lines_name_the_row(tmp_path: Path, row: Any, message: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", [good_row(), row])
    with pytest.raises(UsageError, match=message) as caught:
        rows_from_file(path, 2, PAYLOADS)
    assert str(caught.value).startswith(f"{path} cannot be used:\n  row 1")


def test_too_few_lines_and_all_their_mistakes_are_said_at_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [good_row(9), good_row(), good_row(token=1)])
    with pytest.raises(UsageError) as caught:
        rows_from_file(path, 4, PAYLOADS)
    said = [line.split(",")[0] for line in str(caught.value).splitlines()]
    assert [line[:6] for line in said[1:4]] == ["  row ", "  row ", "  row "]
    assert said[-1] == "  rows: must be at least 4"
    many = write_lines(tmp_path / "many.jsonl", [good_row(token=1)] * 50)
    with pytest.raises(UsageError, match=r"\n  and 30 more$"):
        rows_from_file(many, 50, PAYLOADS)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_json_lines_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "d.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"d\.jsonl: must be a readable file of UTF-8 text"):
        rows_from_file(path, 1, PAYLOADS)


def test_tensors_of_the_space_file_are_named_by_their_key() -> None:
    wrong = DataSet(None, 2, 0, json.dumps({"ids": [[7], [8]], "mask": [[1], [1, 1]]}))
    with pytest.raises(UsageError) as caught:
        model_inputs(model(DataSet(None, 2, 0), wrong))
    assert str(caught.value).splitlines() == [
        "models.m.evaluation.tensors cannot be used:",
        "  row 0: score: is missing",
        "  row 1: score: is missing",
    ]
    short = DataSet(None, 2, 0, json.dumps({"ids": [[7], [8]], "mask": [[1]]}))
    with pytest.raises(UsageError, match="mask: must have at least 2 rows, got 1"):
        model_inputs(model(short, DataSet(None, 2, 0)))


def test_given_rows_are_kept_apart_and_are_evidence(tmp_path: Path) -> None:
    rows = [good_row(4, token) for token in (5, 6, 7)]
    file = DataSet(write_lines(tmp_path / "d.jsonl", rows[2:]), 1, 0)
    with pytest.raises(UsageError, match=r"d\.jsonl: 1 of 1 rows are used for calibration and"):
        model_inputs(model(given(rows), file))
    assert model(DataSet(None, 2, 0), given(rows)).accuracy_evidence == "dataset"
    assert model(given(rows), DataSet(None, 2, 0)).accuracy_evidence == "synthetic"


def test_rows_are_cropped_along_the_length_and_keep_something_of_their_own() -> None:
    payloads = Payloads(
        (
            TensorSpec("ids", "INT64", (None,), minimum=1, maximum=9),
            TensorSpec("attention_mask", "INT64", (None,), minimum=1, maximum=1),
            TensorSpec("scale", "FP32", (5,), minimum=0, maximum=1),
        ),
        LengthDistribution((2, 5), (0.5, 0.5)),
    )
    scale = np.ones((1, 5), np.float32)
    in_front, behind = np.array([[0, 0, 0, 1, 1]]), np.array([[1, 1, 1, 0, 0]])
    ids = np.array([[1, 2, 3, 4, 5]])
    rows: list[Tensors] = [
        {"ids": ids, "attention_mask": mask, "scale": scale} for mask in (behind, in_front)
    ]
    first, second = cropped(rows, 2, payloads)
    assert first["ids"].tolist() == [[1, 2]]
    assert second["ids"].tolist() == [[4, 5]]
    assert first["attention_mask"].tolist() == second["attention_mask"].tolist() == [[1, 1]]
    assert first["scale"].shape == (1, 5)


def with_widths(spec: ModelSpec) -> ModelSpec:
    """Images [height, width], whose height follows from the width."""
    payloads = Payloads(
        (TensorSpec("image", "FP32", ("height", "width"), 0, 1),),
        dimensions=(
            Dimension("width", LengthDistribution((4, 2, 6), (1, 1, 1))),
            Dimension("height", None, "width", times=2),
        ),
    )
    return replace(spec, payloads=payloads)


def test_the_smallest_sizes_are_drawn_beside_the_largest() -> None:
    spec = with_widths(model(DataSet(None, 2, 0), DataSet(None, 5, 0)))
    inputs = model_inputs(spec)
    assert {row["image"].shape for row in inputs.evaluation} == {(1, 12, 6)}
    assert [row["image"].shape for row in inputs.smallest] == [(1, 4, 2)] * 5
    first, last = rows_by_shape(inputs, [], spec.payloads)
    assert (first.name, first.sizes) == ("1", "")
    assert (last.name, last.sizes) == ("smallest", "height 4, width 2")
    unbatched = replace(spec, payloads=replace(spec.payloads, batched=False))
    assert rows_by_shape(model_inputs(unbatched), [], unbatched.payloads)[1].sizes == last.sizes


def test_there_are_no_smallest_sizes_where_there_is_one_or_rows_are_given(tmp_path: Path) -> None:
    assert model_inputs(model(DataSet(None, 2, 0), DataSet(None, 5, 0))).smallest == []
    file = save(tmp_path / "d.npz", {"image": np.zeros((2, 12, 6), np.float32)})
    spec = with_widths(model(DataSet(None, 2, 0), DataSet(file, 2, 0)))
    assert model_inputs(spec).smallest == []
