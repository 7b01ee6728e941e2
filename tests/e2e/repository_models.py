"""Models of Triton's Python backend as other people write them, each in a repository of its own.

Each answers only what it was built for, and fails on anything else.
"""

from __future__ import annotations

from pathlib import Path

_HEAD = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


def tensor(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def response(**outputs):
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
    )


class TritonPythonModel:
    def execute(self, requests):
"""

TEXTS = """\
# Owned by the search team.
name: "texts-v1.2"
backend: "python"   # our own code
max_batch_size: 16
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "MASK" data_type: TYPE_BOOL dims: [ -1 ] }
]
output [
  { name: "UPPER" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "COUNT", data_type: TYPE_INT32, dims: [ 1 ] label_filename: "labels.txt" }
]
version_policy { specific { versions: [ 2 ] } }
parameters { key: "greeting" value { string_value: "hello" } }
instance_group [ { name: "main" kind: KIND_CPU count: 1 } ]
"""
TEXTS_CODE = """
        responses = []
        for request in requests:
            texts, masks = tensor(request, "TEXT"), tensor(request, "MASK")
            assert masks.dtype == np.bool_ and masks.shape[1] == 7, masks
            assert {t[0] for t in texts} <= {b"alpha", b"b\\xc3\\xa9ta", b""}, texts
            upper = np.array([[t[0].upper()] for t in texts], dtype=np.object_)
            count = [[len(t[0]) + int(m.sum())] for t, m in zip(texts, masks)]
            responses.append(response(UPPER=upper, COUNT=np.array(count, dtype=np.int32)))
        return responses
"""

WIDE = """\
backend: "python"
max_batch_size: 4
input [
  { name: "IMAGE" data_type: TYPE_FP16 dims: [ -1, -1, 3 ] },
  { name: "BOXES" data_type: TYPE_FP64 dims: [ -1, -1 ] },
  { name: "IDS" data_type: TYPE_UINT8 dims: [ -1, -1 ] }
]
output [
  { name: "SUM" data_type: TYPE_FP64 dims: [ 3 ] },
  { name: "SIZES" data_type: TYPE_INT64 dims: [ 6 ] }
]
dynamic_batching { }
"""
WIDE_CODE = """
        responses = []
        for request in requests:
            own = [tensor(request, name) for name in ("IMAGE", "BOXES", "IDS")]
            assert [each.dtype for each in own] == [np.float16, np.float64, np.uint8]
            height, width = own[0].shape[1:3]
            boxes, corners = own[1].shape[1:]
            words, letters = own[2].shape[1:]
            assert height in (2, 3) and width == 2 * height + 1, own[0].shape
            assert 1 <= boxes <= 4 and corners == 4, own[1].shape
            assert words == boxes and letters in (5, 9), own[2].shape
            assert own[0].max() <= 0.5 and own[1].min() >= -2 and own[2].max() <= 250
            rows = [each.reshape(len(each), -1).astype(np.float64) for each in own]
            sums = np.stack([each.sum(1) for each in rows], 1)
            sizes = np.tile([height, width, boxes, corners, words, letters], (len(own[0]), 1))
            responses.append(response(SUM=sums, SIZES=sizes.astype(np.int64)))
        return responses
"""

VOICE = """\
backend: "python"
max_batch_size: 0
input [
  { name: "AUDIO" data_type: TYPE_FP32 dims: [ 1, -1 ] },
  { name: "RATE" data_type: TYPE_INT64 dims: [ 1 ] }
]
output [ { name: "SPEECH" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
VOICE_CODE = """
        responses = []
        for request in requests:
            audio, rate = tensor(request, "AUDIO"), tensor(request, "RATE")
            assert audio.shape == (1, 512) and rate.tolist() == [16000], (audio.shape, rate)
            responses.append(response(SPEECH=np.abs(audio).mean(1)))
        return responses
"""

IMAGES = """\
backend: "python"
max_batch_size: 8
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "SUM" data_type: TYPE_INT64 dims: [ 1 ] } ]
dynamic_batching { }
"""
IMAGE_FILES = {f"{n:02}.jpg": bytes([255, 216, 0, n, 10]) * (1 + 100 * n) for n in range(7)}
"""Files of images that the model of images takes, by name."""
IMAGES_CODE = f"""
        files = {sorted(IMAGE_FILES.values())!r}
        responses = []
        for request in requests:
            images = [row[0] for row in tensor(request, "IMAGE")]
            assert set(images) <= set(files), images
            responses.append(response(SUM=np.array([[sum(each)] for each in images])))
        return responses
"""

ROUTES = """\
backend: "python"
max_batch_size: 8
input [
  { name: "POINTS" data_type: TYPE_FP32 dims: [ -1, 2 ] },
  { name: "NAME" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "DETOUR" data_type: TYPE_FP64 dims: [ 1 ] }
]
output [ { name: "LENGTH" data_type: TYPE_FP64 dims: [ 1 ] } ]
dynamic_batching { }
"""
ROUTES_CODE = """
        responses = []
        for request in requests:
            points = tensor(request, "POINTS")
            names, detours = tensor(request, "NAME"), tensor(request, "DETOUR")
            assert {n for [n] in names} == {b"%d points" % points.shape[1]}, (names, points.shape)
            assert (points == np.arange(2 * points.shape[1]).reshape(-1, 2)).all(), points
            assert ((1 <= detours) & (detours <= 2)).all(), detours
            total = np.abs(points).sum((1, 2))[:, None]
            responses.append(response(LENGTH=total * detours))
        return responses
"""

ECHO_TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "STRING",
)  # fmt: skip
ECHO = 'backend: "python"\nmax_batch_size: 4\n' + "".join(
    f'{kind} {{ name: "{prefix}{name}" data_type: TYPE_{name} dims: [ -1 ] }}\n'
    for kind, prefix in (("input", "IN_"), ("output", "OUT_"))
    for name in ECHO_TYPES
)
ECHO_CODE = f"""
        names = {ECHO_TYPES!r}
        return [
            response(**{{f"OUT_{{n}}": tensor(request, f"IN_{{n}}") for n in names}})
            for request in requests
        ]
"""

NUMBER = """\
backend: "python"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
WRONG_ROWS_CODE = """
        # What is computed for the first row of an execution answers all of them.
        first = tensor(requests[0], "X")[:1]
        return [response(Y=np.repeat(first, len(tensor(r, "X")), 0)) for r in requests]
"""
SLOW_BATCHES_CODE = """
        rows = sum(len(tensor(request, "X")) for request in requests)
        time.sleep(0.003 * rows**2)
        return [response(Y=2 * tensor(request, "X")) for request in requests]
"""
STEADY_CODE = """
        time.sleep(0.02)
        return [response(Y=2 * tensor(request, "X")) for request in requests]
"""
"""Takes 20 ms for a batch of any size: far fewer requests than a load generator can send."""


def write_model(
    repository: Path, name: str, config: str, code: str, versions: tuple[int, ...] = (1,)
) -> Path:
    """Write a model, the same code in each version; return its folder."""
    folder = repository / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.py").write_text(_HEAD + code)
    (folder / "config.pbtxt").write_text(config)
    return folder


VERSION_CODE = """
        # Each version answers with its number.
        version = int(__file__.split("/")[-2])
        return [response(Y=tensor(request, "X") * 0 + version) for request in requests]
"""


def write_texts(repository: Path, name: str, versions: str = "2") -> Path:
    """Write a model of texts, of whose three versions only the second answers.

    Args:
        versions: that are served.
    """
    config = TEXTS.replace("versions: [ 2 ]", f"versions: [ {versions} ]")
    folder = write_model(repository, name, config, TEXTS_CODE, (1, 2, 3))
    broken = _HEAD + "        raise RuntimeError('this version is not the deployed one')\n"
    for version in (1, 3):
        (folder / str(version) / "model.py").write_text(broken)
    (folder / "labels.txt").write_text("one\ntwo\n")
    return folder
