"""Tensors of every data type: their binary form, and .npz files of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray
from tritonclient.utils import serialize_byte_tensor

from optimizer.files.tensors import from_npz, to_npz
from optimizer.files.untrusted import UnreadableError
from optimizer.triton.tensors import client_inputs
from optimizer.workload.data_types import NUMPY_TYPES, DataType, data_type_of, decoded, encoded
from optimizer.workload.streams import Tensors
from optimizer.workload.text_pattern import draw_texts

SHAPES = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, data_type: DataType | None = None) -> NDArray[Any]:
    chosen = draw(st.sampled_from([*NUMPY_TYPES])) if data_type is None else data_type
    dtype, shape = NUMPY_TYPES[chosen], draw(SHAPES)
    count = int(np.prod(shape))
    array = np.empty(count, dtype=dtype)
    if chosen == "BYTES":
        array[:] = draw(st.lists(st.binary(max_size=300), min_size=count, max_size=count))
    elif chosen == "BOOL":
        array[:] = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    else:
        content = st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)
        array = np.frombuffer(draw(content), dtype)
    return array.reshape(shape)


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether type, shape and every bit are the same."""
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and encoded(one) == encoded(other)


@given(arrays())
def test_what_is_encoded_is_decoded(array: NDArray[Any]) -> None:
    assert same(decoded(encoded(array), data_type_of(array), array.shape), array)


@given(arrays("BYTES").filter(lambda array: array.size > 0))
def test_texts_are_encoded_as_tritons_client_does(array: NDArray[Any]) -> None:
    assert encoded(array) == serialize_byte_tensor(array).item()


def test_bf16_is_the_upper_half_of_a_float() -> None:
    values = np.array([1.5, -2.25, 0.0, 7.0], np.float32)
    halves = np.frombuffer(values.tobytes(), np.uint16)[1::2]
    assert encoded(values.astype(NUMPY_TYPES["BF16"])) == halves.tobytes()


def test_the_elements_follow_in_row_major_order() -> None:
    array = np.array([[1, 2], [3, 4]], np.uint8)
    assert encoded(array.T) == bytes([1, 3, 2, 4])


@pytest.mark.parametrize(
    ("content", "data_type"),
    [
        (encoded(np.array([b"three"], object))[:-1], "BYTES"),
        (encoded(np.array([b"three"], object))[:2], "BYTES"),
        (b"", "BYTES"),
        (b"abc", "INT16"),
        (b"abcd", "INT16"),
    ],
)
def test_content_that_does_not_fit_is_refused(content: bytes, data_type: DataType) -> None:
    with pytest.raises(ValueError, match=r"cut off|reshape|multiple of element size"):
        decoded(content, data_type, (1,))


@given(st.dictionaries(st.sampled_from(["input:x", "ids", "zwei Wörter", "a.b"]), arrays()))
def test_tensors_come_back_from_a_file(tensors: Tensors) -> None:
    content = to_npz(tensors)
    assert content == to_npz(tensors)
    read = from_npz(content)
    assert read.keys() == tensors.keys()
    assert all(same(read[name], array) for name, array in tensors.items())


def archive(**arrays: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive(x=np.array([{"a": 1}], object)),
        archive(**{"x|BYTES": np.frombuffer(b"\x09\0", np.uint8), "x|shape": np.ones(1, int)}),
        archive(**{"x|BYTES": np.frombuffer(b"\x09\0\0\0a", np.uint8), "x|shape": np.ones(1, int)}),
        archive(**{"x|BF16": np.zeros(2, np.uint8)}),
    ],
)
def test_a_file_of_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"must be an \.npz file of plain arrays: "):
        from_npz(content)


def test_arrays_that_take_too_much_memory_are_refused_unread() -> None:
    content = to_npz({"x": np.zeros(2**20, np.uint8)})
    assert len(content) < 2**12
    with pytest.raises(UnreadableError, match=r"arrays must take at most 0\.5 MiB"):
        from_npz(content, most_bytes=2**19)


def test_a_text_of_a_pattern_is_sent_as_it_is() -> None:
    texts = np.empty((1, 1), dtype=np.object_)
    texts[0, 0] = draw_texts("a{3}", 1, np.random.default_rng(0))[0]
    plain = np.array([[b"aaa"]], dtype=np.object_)
    sent, expected = (client_inputs({"TEXT": each})[0] for each in (texts, plain))
    assert sent._get_content() == expected._get_content()
