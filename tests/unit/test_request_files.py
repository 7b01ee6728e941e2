"""Values of requests from files: every format, every mistake, and what is drawn beside them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from optimizer.artifacts.datasets import model_inputs, row_digest
from optimizer.errors import ChangedRequestsError, SpaceFileError, UsageError
from optimizer.export.bundle.examples import draw_requests
from optimizer.files import request_payloads
from optimizer.files.request_payloads import rows_of_file, with_file
from optimizer.files.tensors import to_npz
from optimizer.space_file.input_schema import InputSection
from optimizer.space_file.reader import Space, load_space
from optimizer.study.warm_start import blocking_differences
from optimizer.workload.streams import Payloads, Tensors
from tests.unit.studies import HARDWARE, PRICE

SPACE = """\
study: served
models:
  m:
    source: {{onnx: m.onnx}}
    {keys}
    requests: {requests}
    inputs: {{{inputs}}}
price: {{instance_type: test.large, usd_per_hour: 0.36, as_of: 2026-01-01}}
parameters: {{runtime: [onnxruntime], batching: [false]}}
{end}
"""
TEXTS = "T: {data_type: BYTES, shape: [1]}"
PIXELS = "X: {data_type: UINT8, shape: [2, side]}"
IDS = "IDS: {data_type: INT64, shape: [length]}"


def space(
    folder: Path, requests: str, inputs: str, keys: str = "batched: true", end: str = ""
) -> Space:
    (folder / "m.onnx").touch()
    path = folder / "space.yaml"
    path.write_text(SPACE.format(requests=requests, inputs=inputs, keys=keys, end=end))
    return load_space(path, {PRICE.instance_type: PRICE}, HARDWARE)


def loaded(folder: Path, requests: str, inputs: str, **keys: str) -> Payloads:
    return space(folder, requests, inputs, **keys).models[0].payloads


def with_requests(path: Path, inputs: str) -> Payloads:
    """Requests of a file, without a space file."""
    sections = YAML(typ="safe").load(f"{{{inputs}}}")
    values = {name: InputSection.model_validate(keys) for name, keys in sections.items()}
    return with_file(
        Payloads(tuple(own.to_value(name, requests=True) for name, own in values.items())), path
    )


def sent(payloads: Payloads, count: int, **options: Any) -> list[Tensors]:
    rows = rows_of_file(payloads)
    return payloads.sample(count, np.random.default_rng(0), rows=rows, **options)


def values(requests: list[Tensors], name: str) -> list[Any]:
    return [request[name].tolist() for request in requests]


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".jsonl"):
        path.write_text("".join(f"{json.dumps(each)}\n" for each in content))
    else:
        path.write_text(json.dumps(content))
    return name


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


PIXEL_ROWS = [
    np.arange(n, n + 2 * size, dtype=np.uint8).reshape(2, size) for n, size in ((0, 3), (9, 3))
]
OF_PIXELS: list[tuple[str, Any]] = [
    ("d.npz", to_npz({"X": np.stack(PIXEL_ROWS)})),
    ("d.jsonl", [{"X": row.tolist()} for row in PIXEL_ROWS]),
    ("list.json", {"data": [{"X": row.ravel().tolist()} for row in PIXEL_ROWS]}),
    (
        "content.json",
        {"data": [{"X": {"content": r.ravel().tolist(), "shape": [2, 3]}} for r in PIXEL_ROWS]},
    ),
    ("b64.json", {"data": [{"X": {"b64": encoded(row.tobytes())}} for row in PIXEL_ROWS]}),
    (
        "b64-content.json",
        {
            "data": [
                {"X": {"content": {"b64": encoded(row.tobytes())}, "shape": [2, 3]}}
                for row in PIXEL_ROWS
            ]
        },
    ),
    (
        "streams.json",
        {
            "data": [[{"X": row.ravel().tolist()}] for row in PIXEL_ROWS],
            "validation_data": [[{"Y": [0]}], [{"Y": [0]}]],
        },
    ),
]


@pytest.mark.parametrize(("name", "content"), OF_PIXELS, ids=[name for name, _ in OF_PIXELS])
def test_every_format_gives_the_same_requests_in_its_order(
    tmp_path: Path, name: str, content: Any
) -> None:
    payloads = with_requests(tmp_path / write(tmp_path, name, content), PIXELS)
    requests = sent(payloads, 3)
    assert {r["X"].dtype for r in requests} == {np.dtype(np.uint8)}
    expected = [row[None].tolist() for row in (*PIXEL_ROWS, PIXEL_ROWS[0])]
    assert values(requests, "X") == expected
    assert payloads.file is not None
    assert (payloads.file.requests, payloads.file.shapes) == (2, (2,))
    assert payloads.largest_sizes()["side"] == 3


def test_a_directory_has_a_file_for_each_request(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    files = {"b.jpg": b"\xff\x00second", "a.png": b"first", ".hidden": b"no"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert values(sent(loaded(tmp_path, "images", TEXTS), 2), "T") == [
        [[b"first"]],
        [[b"\xff\x00second"]],
    ]
    scalar = loaded(tmp_path, "images", "T: {data_type: BYTES, shape: []}", keys="batched: false")
    assert values(sent(scalar, 1), "T") == [b"first"]
    raw = loaded(tmp_path, "images", "T: {data_type: UINT8, shape: [bytes]}")
    assert [r["T"].shape for r in sent(raw, 2)] == [(1, 5), (1, 8)]
    assert raw.file is not None
    assert raw.file.shapes == (1, 1)


def test_validation_data_is_noted_and_not_used(tmp_path: Path) -> None:
    data = {"data": [{"IDS": [1]}], "validation_data": [{"Y": [1]}]}
    noted = space(tmp_path, write(tmp_path, "d.json", data), IDS)
    reason = "validation_data is not used; outputs are compared with the model's own"
    assert noted.notes == (f"{tmp_path}/d.json: {reason}",)


def test_texts_of_perf_analyzer_are_lists_or_bytes_after_their_lengths(tmp_path: Path) -> None:
    two = b"".join(struct.pack("<I", len(text)) + text for text in (b"\xff", b""))
    data = [{"T": ["a", "ü"]}, {"T": {"b64": encoded(two)}}]
    name = write(tmp_path, "d.json", {"data": data})
    payloads = loaded(tmp_path, name, "T: {data_type: BYTES, shape: [2]}")
    assert values(sent(payloads, 2), "T") == [[[b"a", "ü".encode()]], [[b"\xff", b""]]]


def test_every_type_takes_numbers_as_json_writes_them(tmp_path: Path) -> None:
    types = ["BF16", "FP16", "FP64", "INT8", "UINT64"]
    row: dict[str, list[Any]] = {each: [1, 2] for each in types} | {"BOOL": [True, False]}
    inputs = ", ".join(f"{each}: {{data_type: {each}, shape: [2]}}" for each in row)
    for name, content in [("d.jsonl", [row]), ("d.json", {"data": [row]})]:
        [request] = sent(loaded(tmp_path, write(tmp_path, name, content), inputs), 1)
        assert [a.dtype.name for a in request.values()] == [
            "bfloat16", "float16", "float64", "int8", "uint64", "bool",
        ]  # fmt: skip
        assert request["BF16"].astype(float).tolist() == [[1, 2]]


def test_requests_are_padded_along_the_length(tmp_path: Path) -> None:
    name = write(tmp_path, "d.jsonl", [{"IDS": [1, 2, 3]}, {"IDS": [4]}, {"IDS": [5, 6, 7, 8, 9]}])
    payloads = loaded(tmp_path, name, IDS)
    assert payloads.lengths.lengths == (1, 3, 5)
    assert values(sent(payloads, 2), "IDS") == [[[1, 2, 3, 0, 0]], [[4, 0, 0, 0, 0]]]
    assert values(sent(payloads, 2, padding=(3,)), "IDS") == [[[1, 2, 3]], [[4, 0, 0]]]
    [joined] = sent(payloads, 1, padding=(3,), batch_size=2)
    assert joined["IDS"].tolist() == [[1, 2, 3], [4, 0, 0]]


def test_constants_beside_a_file_leave_the_requests_as_they_are(tmp_path: Path) -> None:
    name = write(tmp_path, "d.jsonl", [{"IDS": [5, 6]}, {"IDS": [7]}])
    mask = "MASK: {shape: [length], minimum: 1, maximum: 1}, RATE: {shape: [1], value: 9}"
    payloads = loaded(tmp_path, name, f"{IDS}, {mask}")
    assert payloads.recorded
    requests = sent(payloads, 2)
    assert values(requests, "MASK") == [[[1, 1]], [[1, 0]]]
    assert values(requests, "RATE") == [[[9]], [[9]]]


def test_other_inputs_are_drawn_with_the_sizes_of_the_file(tmp_path: Path) -> None:
    rows = [{"BOX": [[0.5, 1.5]] * size} for size in (1, 3, 3)]
    inputs = (
        "BOX: {data_type: FP32, shape: [boxes, 2]}, "
        "SCORE: {data_type: FP32, shape: [boxes], minimum: 1, maximum: 2}, "
        "MORE: {data_type: INT32, shape: [twice], value: 7}"
    )
    name = write(tmp_path, "d.jsonl", rows)
    payloads = loaded(
        tmp_path, name, inputs, keys="dimensions: {twice: {of: boxes, times: 2, plus: 1}}"
    )
    assert not payloads.recorded
    shapes = [{n: a.shape for n, a in request.items()} for request in sent(payloads, 2)]
    assert shapes == [
        {"BOX": (1, 1, 2), "SCORE": (1, 1), "MORE": (1, 3)},
        {"BOX": (1, 3, 2), "SCORE": (1, 3), "MORE": (1, 7)},
    ]
    assert payloads.file is not None
    assert payloads.file.shapes == (1, 2)


MISTAKES: list[tuple[str, Any, str, str]] = [
    ("d.json", {"data": []}, PIXELS, 'd.json: must be an object with the list "data" of requests'),
    ("d.json", [], PIXELS, 'must be an object with the list "data"'),
    ("d.json", b"{", PIXELS, "d.json: must be JSON, line 1"),
    ("d.json", {"data": [{"X": [1]}, [{"X": [1]}]]}, PIXELS, "objects or lists of objects"),
    ("d.json", {"data": [[{"X": [1] * 6}, 3]]}, PIXELS, "data[0][1]: must be an object of tensors"),
    (
        "d.json",
        {"data": [{"X": [1, 2, 3]}]},
        PIXELS,
        "data[0]: X must have the elements of shape [2, 1], got 3",
    ),
    (
        "d.json",
        {"data": [{"X": {"content": [1], "shape": [2]}}]},
        PIXELS,
        "X must have the elements of shape [2], got 1",
    ),
    (
        "d.json",
        {"data": [{"X": {"content": [1] * 6, "shape": [3, 2]}}]},
        PIXELS,
        "data[0]: X: must have shape [rows, 2, side], got [1, 3, 2]",
    ),
    (
        "d.json",
        {"data": [{"X": {"content": [1], "shape": "2"}}]},
        PIXELS,
        "X must have a list of sizes as its shape, got '2'",
    ),
    (
        "d.json",
        {"data": [{"X": {"contents": [1]}}]},
        PIXELS,
        "X must have only content, shape and b64, got 'contents'",
    ),
    ("d.json", {"data": [{"X": 4}]}, PIXELS, 'X must be a list, or have "content" or "b64", got 4'),
    ("d.json", {"data": [{"X": {"b64": 4}}]}, PIXELS, "X must have a text as its b64, got 4"),
    ("d.json", {"data": [{"X": {"b64": "*"}}]}, PIXELS, "X must have base64 as its b64"),
    (
        "d.json",
        {"data": [{"X": {"b64": encoded(b"abc")}}]},
        "X: {data_type: INT32, shape: [1]}",
        "X must have a multiple of 4 bytes, got 3",
    ),
    (
        "d.json",
        {"data": [{"T": {"b64": encoded(b"abc")}}]},
        TEXTS,
        "T must have each text after its length in 4 bytes",
    ),
    ("d.json", {"data": [{"T": [1]}]}, TEXTS, "data[0]: T must be a list of texts"),
    (
        "d.json",
        {"data": [{"X": [1]}]},
        "X: {data_type: INT8, shape: [a, b]}",
        'X must have "shape", since [a, b] has several free dimensions',
    ),
    (
        "d.json",
        {"data": [{"X": [300, 1]}]},
        PIXELS,
        "data[0]: X: must be 0 to 255 as UINT8, got 300",
    ),
    ("d.json", {"data": [{"X": [1.5, 1]}]}, PIXELS, "data[0]: X: must hold integers, got float64"),
    ("d.json", {"data": [{"Y": [1]}]}, PIXELS, "data[0]: Y: is not an input; the inputs are X"),
    ("d.json", {"data": [{}]}, PIXELS, "data[0]: X: is missing"),
    (
        "d.jsonl",
        [{"X": [[1], [2]]}, {"X": [1]}],
        PIXELS,
        "row 1: X: must have shape [rows, 2, side], got [1, 1]",
    ),
    ("d.jsonl", [{"X": [[], []]}], PIXELS, "row 0: X: must be at least 1 along side, got [0]"),
    (
        "d.jsonl",
        [{"X": [7e4]}],
        "X: {data_type: FP16, shape: [1]}",
        "row 0: X: must be a number that fits in FP16, got 70000.0",
    ),
    ("d.jsonl", [], PIXELS, "rows: must be at least 1, got 0"),
    (
        "d.jsonl",
        [{"X": [1], "Y": [1, 2]}],
        "X: {shape: [n]}, Y: {shape: [n]}",
        "row 0: n: must be the same in every tensor, got X [1], Y [2]",
    ),
    (
        "d.jsonl",
        [{"X": [1], "Y": [1]}],
        "X: {shape: [1]}, Y: {shape: [1], value: 3}",
        "row 0: Y: has values in the space file too",
    ),
    (
        "d.npz",
        to_npz({"X": np.zeros((0, 2, 3), np.uint8)}),
        PIXELS,
        "X: must have at least 1 rows, got 0",
    ),
    (
        "d.npz",
        to_npz({"X": np.zeros((2, 2, 3), np.uint8), "Y": np.zeros((3, 1), np.uint8)}),
        "X: {data_type: UINT8, shape: [2, 3]}, Y: {data_type: UINT8, shape: [1]}",
        "X: must have at least 3 rows, got 2",
    ),
    ("d.npz", b"nothing", PIXELS, "d.npz: must be an .npz file of plain arrays"),
]


@pytest.mark.parametrize(("name", "content", "inputs", "message"), MISTAKES)
def test_a_mistake_names_the_request_the_tensor_and_the_rule(
    tmp_path: Path, name: str, content: Any, inputs: str, message: str
) -> None:
    write(tmp_path, name, content)
    with pytest.raises(UsageError) as caught:
        with_requests(tmp_path / name, inputs)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / name}")


def test_all_mistakes_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    name = write(tmp_path, "d.jsonl", [{"IDS": ["a"]}, {"IDS": []}, {"IDS": [1]}, {"X": [1]}])
    with pytest.raises(UsageError) as caught:
        space(tmp_path, name, IDS)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  row 0", "  row 1", "  row 3", "  row 3",
    ]  # fmt: skip


def _empty(folder: Path) -> None:
    folder.mkdir()


def _nested(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)


def _one(folder: Path) -> None:
    folder.mkdir()
    (folder / "a").write_bytes(b"abc")


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (_empty, TEXTS, "rows: must be at least 1, got 0"),
        (_nested, TEXTS, "must contain only files, got 'inner'"),
        (
            _one,
            f"{TEXTS}, U: {{shape: [1]}}",
            "a directory has the values of one input, and not of T, U",
        ),
        (_one, "T: {data_type: BYTES, shape: [2]}", "a: T must have the size 1 in every axis"),
        (_one, "T: {data_type: FP16, shape: [n]}", "a: T must have a multiple of 2 bytes, got 3"),
    ],
)
def test_a_directory_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], None], inputs: str, message: str
) -> None:
    make(tmp_path / "files")
    with pytest.raises(UsageError) as caught:
        with_requests(tmp_path / "files", inputs)
    assert message in str(caught.value)


def test_a_damaged_archive_is_read_or_refused(tmp_path: Path) -> None:
    whole = to_npz({"X": np.stack(PIXEL_ROWS)})
    for at in range(0, len(whole), 3):
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        try:
            payloads = with_requests(tmp_path / write(tmp_path, "d.npz", damaged), PIXELS)
        except UsageError:
            continue
        assert payloads.file is not None


def test_requests_beyond_the_memory_of_load_clients_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_payloads, "_MOST_BYTES", 2**20)
    (tmp_path / "files").mkdir()
    for n in range(3):
        (tmp_path / "files" / f"{n}").write_bytes(bytes(2**19))
    with pytest.raises(UsageError, match=r"requests: must take at most 1 MiB .*, got 2 MiB"):
        space(tmp_path, "files", TEXTS)


@pytest.mark.parametrize(
    ("requests", "inputs", "keys", "end", "message"),
    [
        ("none.npz", IDS, "", "", "models.m.requests: file must exist"),
        ("m.onnx", IDS, "", "", "models.m.requests: must be a directory or end with .npz, .jsonl"),
        (
            "d.jsonl",
            "IDS: {value: 1}",
            "lengths: {fixed: 2}",
            "",
            "models.m.inputs: have values, so `requests` is not",
        ),
        (
            "d.jsonl",
            IDS,
            "lengths: {fixed: 2}",
            "",
            "models.m.lengths: must be left out: `requests` gives",
        ),
        (
            "d.jsonl",
            "IDS: {shape: [n]}",
            "dimensions: {n: {fixed: 2}}",
            "",
            "models.m.dimensions.n: must be left out",
        ),
        (
            "d.jsonl",
            "IDS: {shape: [n]}",
            "",
            "traffic: {batch_size: 2}",
            "traffic.batch_size: must be 1: requests of 2 shapes in",
        ),
        (
            "d.jsonl",
            IDS,
            "parameters: {padding: [[2, 4]]}",
            "",
            "parameters.padding: must not be above the longest length in",
        ),
        (
            "d.jsonl",
            "IDS: {shape: [n], pattern: a}",
            "",
            "",
            "inputs.IDS.pattern: must go with data_type BYTES",
        ),
        (
            "d.jsonl",
            "IDS: {data_type: BYTES, pattern: '(a'}",
            "",
            "",
            "inputs.IDS.pattern: needs ')', at character 2",
        ),
    ],
)
def test_keys_that_do_not_go_with_a_file(
    tmp_path: Path, requests: str, inputs: str, keys: str, end: str, message: str
) -> None:
    write(tmp_path, "d.jsonl", [{"IDS": [1]}, {"IDS": [1, 2, 3]}])
    with pytest.raises(SpaceFileError) as caught:
        space(tmp_path, requests, inputs, keys, end)
    assert message in str(caught.value)


def test_json_cannot_send_what_is_no_text(tmp_path: Path) -> None:
    _one(tmp_path / "files")
    json_only = "traffic: {transport: {protocol: http, encoding: json}}"
    assert space(tmp_path, "files", TEXTS, end=json_only).workload.transport.encoding == "json"
    (tmp_path / "files" / "b").write_bytes(b"\xff")
    with pytest.raises(SpaceFileError, match=r"traffic\.transport\.encoding: must be binary: JSON"):
        space(tmp_path, "files", TEXTS, end=json_only)


def test_a_length_in_a_file_fits_the_models_positions(tmp_path: Path) -> None:
    write(tmp_path, "d.jsonl", [{"IDS": [1] * 9}])
    path = tmp_path / "space.yaml"
    text = SPACE.format(requests="d.jsonl", inputs=IDS, keys="", end="")
    source = "source: {class: BertModel, config: {max_position_embeddings: 8}}"
    path.write_text(text.replace("source: {onnx: m.onnx}", source))
    with pytest.raises(
        SpaceFileError, match=r"models\.m\.requests: must not be longer than .*\(8\)"
    ):
        load_space(path, {PRICE.instance_type: PRICE}, HARDWARE)


def test_a_changed_file_is_another_workload(tmp_path: Path) -> None:
    write(tmp_path, "d.jsonl", [{"IDS": [1]}])
    before = space(tmp_path, "d.jsonl", IDS)
    assert space(tmp_path, "d.jsonl", IDS).content == before.content
    write(tmp_path, "d.jsonl", [{"IDS": [2]}])
    [difference] = blocking_differences(before.content, space(tmp_path, "d.jsonl", IDS).content)
    assert difference.startswith("models.m.requests_sha256: was ")
    with pytest.raises(ChangedRequestsError, match="has changed since"):
        rows_of_file(before.models[0].payloads)
    (tmp_path / "d.jsonl").unlink()
    with pytest.raises(ChangedRequestsError, match="must exist"):
        rows_of_file(before.models[0].payloads)


def test_a_renamed_or_added_file_changes_a_directory(tmp_path: Path) -> None:
    _one(tmp_path / "files")
    digests = [loaded(tmp_path, "files", TEXTS).file]
    (tmp_path / "files" / "a").rename(tmp_path / "files" / "b")
    digests.append(loaded(tmp_path, "files", TEXTS).file)
    (tmp_path / "files" / "c").touch()
    digests.append(loaded(tmp_path, "files", TEXTS).file)
    assert len({each.sha256 for each in digests if each is not None}) == 3


def test_the_accuracy_is_judged_on_the_requests(tmp_path: Path) -> None:
    rows = [{"IDS": [n]} for n in (1, 2, 3, 4, 2)] + [{"IDS": [5, 6]}]
    write(tmp_path, "d.jsonl", rows)
    model = space(tmp_path, "d.jsonl", IDS).models[0]
    assert model.accuracy_evidence == "dataset"
    assert not model.int8_is_a_guess(calibrated=True)
    inputs = model_inputs(model)
    assert values(inputs.calibration, "IDS") == [[[2, 0]], [[4, 0]]]
    assert values(inputs.evaluation, "IDS") == [[[1, 0]], [[3, 0]], [[5, 6]]]


def test_one_request_is_all_that_there_is_to_judge(tmp_path: Path) -> None:
    write(tmp_path, "d.jsonl", [{"IDS": [3]}])
    inputs = model_inputs(space(tmp_path, "d.jsonl", IDS).models[0])
    assert values(inputs.calibration, "IDS") == values(inputs.evaluation, "IDS") == [[[3]]]


def test_only_requests_of_the_most_frequent_shape_are_compared(tmp_path: Path) -> None:
    rows = [{"X": [[n], [n]]} for n in range(2)] + [{"X": [[n, n]] * 2} for n in range(6)]
    write(tmp_path, "d.jsonl", rows)
    model = space(tmp_path, "d.jsonl", PIXELS).models[0]
    inputs = model_inputs(model)
    shapes = {each["X"].shape for each in (*inputs.calibration, *inputs.evaluation)}
    assert shapes == {(1, 2, 2)}
    assert not {*map(row_digest, inputs.calibration)} & {*map(row_digest, inputs.evaluation)}
    examples = draw_requests(model.payloads)
    assert [row_digest(each) for each in draw_requests(model.payloads)] == [
        row_digest(each) for each in examples
    ]
    assert values(examples, "X") == [[[[n, n]] * 2] for n in range(6)]


def test_a_pattern_makes_the_texts_of_requests(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    text = SPACE.replace("    requests: {requests}\n", "")
    path = tmp_path / "space.yaml"
    inputs = "ID: {data_type: BYTES, shape: [2], pattern: '[A-Z]{3}-[0-9]{4}'}"
    path.write_text(text.format(inputs=inputs, keys="", end=""))
    payloads = load_space(path, {PRICE.instance_type: PRICE}, HARDWARE).models[0].payloads
    first, again = (payloads.sample(20, np.random.default_rng(3)) for _ in range(2))
    texts = [text for [pair] in values(first, "ID") for text in pair]
    assert len(set(texts)) == 40
    assert all(len(each) == 8 and each[3:4] == b"-" for each in texts)
    assert values(again, "ID") == values(first, "ID")
    [spec] = payloads.tensors
    assert len(str(spec.example)) == 8
