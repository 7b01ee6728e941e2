"""Which requests a stream sends, and that unique ones are different for the server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import cast

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from optimizer.load.client import LoadClient
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.load.request_sequence import IN_ORDER, Once, Popular, Recorded, RequestSequence
from optimizer.triton.control import ServerControl
from optimizer.triton.requests import serialised
from optimizer.workload.data_types import NUMPY_TYPES, DataType, decoded
from optimizer.workload.repeats import ZipfRepeats
from optimizer.workload.request_sizes import Dimension, LengthDistribution, RequestFile
from optimizer.workload.streams import Payloads, Tensors, TensorSpec
from optimizer.workload.transport import SerialisedRequest, Transport
from optimizer.workload.variations import ENOUGH, least_different, variations_of
from tests.unit.fake_triton import Serve, at_once, target

RNG = np.random.default_rng(3)


def first(sequence: RequestSequence, count: int) -> list[int]:
    return list(islice(sequence.numbers(), count))


def test_unique_numbers_go_on_where_the_level_before_ended_in_every_process() -> None:
    assert first(IN_ORDER, 3) == [0, 1, 2]
    later = IN_ORDER.after(6, RNG)
    shares = [first(later.share(n, 2), 3) for n in range(2)]
    assert shares == [[6, 8, 10], [7, 9, 11]]


def test_popularity_follows_zipfs_law_in_every_process() -> None:
    repeats = ZipfRepeats(1.1, 50)
    sequence = Popular(repeats).after(0, RNG)
    numbers = first(sequence.share(0, 2), 20_000) + first(sequence.share(1, 2), 20_000)
    counted = np.bincount(numbers, minlength=50) / len(numbers)
    assert counted == pytest.approx(repeats.probabilities(), abs=0.01)
    assert repeats.probabilities()[9] / repeats.probabilities()[0] == pytest.approx(10**-1.1)
    assert first(sequence.share(0, 2), 9) != first(sequence.share(1, 2), 9)
    assert max(first(Popular(ZipfRepeats(0.0, 2)), 100)) == 1


def test_keys_repeat_as_recorded_and_those_of_one_request_never() -> None:
    keys = np.array([0, 1, 0, 2])
    numbers = first(Recorded(keys), 12)
    assert [numbers[at] for at in (0, 2, 4, 6)] == [0, 0, 0, 0]
    once = [numbers[at] for at in (1, 3, 5, 7, 9, 11)]
    assert len({0, *once}) == 7
    assert first(Recorded(keys).after(2, RNG), 2) == numbers[2:4]
    assert first(Recorded(keys).share(1, 2), 3) == numbers[1:6:2]


def test_given_numbers_are_sent_once() -> None:
    sequence = Once(np.array([5, 4, 3]))
    assert list(sequence.numbers()) == [5, 4, 3]
    assert list(sequence.share(1, 2).numbers()) == [4]


TENSORS = {
    "ids": TensorSpec("ids", "INT64", ("length",), 5, 999, pad=0),
    "mask": TensorSpec("mask", "INT64", ("length",), 1, 1),
    "image": TensorSpec("image", "FP32", (3, 2), -1.0, 1.0),
    "half": TensorSpec("half", "FP16", (8,), 0.0, 1.0),
    "bfloat": TensorSpec("bfloat", "BF16", (8,), 0.0, 1.0),
    "flags": TensorSpec("flags", "BOOL", (60,), 0, 1),
    "unsigned": TensorSpec("unsigned", "UINT64", (4,), 0, 2**63),
    "rate": TensorSpec("rate", "INT32", (20,), choices=(8000, 16000, 44100, 48000)),
    "text": TensorSpec("text", "BYTES", (1,), pattern="[a-z]{12,20} (yes|no) é"),
}  # fmt: skip


def values_in(request: SerialisedRequest, transport: Transport, payloads: Payloads) -> Tensors:
    """What a server reads."""
    if transport.protocol == "grpc":
        message = service_pb2.ModelInferRequest.FromString(request.body)
        return {
            each.name: decoded(content, cast(DataType, each.datatype), tuple(each.shape))
            for each, content in zip(message.inputs, message.raw_input_contents, strict=True)
        }
    [spec] = payloads.tensors
    content = request.body[request.json_bytes :]
    if spec.data_type == "BYTES":
        return {spec.name: decoded(content, "BYTES", (1, 1))}
    return {spec.name: np.frombuffer(content, NUMPY_TYPES[spec.data_type])}


class _AnyVersion:
    def version_of(self, model: str) -> str:
        return ""


def pool(payloads: Payloads, transport: Transport, count: int = 8) -> tuple[SerialisedRequest, ...]:
    requests = payloads.sample(count, np.random.default_rng(1))
    variations = [variations_of(payloads, each) for each in requests]
    control = cast(ServerControl, _AnyVersion())
    with serialised(control, "m", requests, transport, variations) as prepared:
        return prepared


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", [name for name in TENSORS if name != "mask"])
def test_every_number_makes_another_valid_request(name: str, protocol: str) -> None:
    spec = TENSORS[name]
    payloads = Payloads((spec,), LengthDistribution((8, 16), (1.0, 1.0)))
    transport = Transport(protocol)  # type: ignore[arg-type]
    prepared = pool(payloads, transport)
    numbers = [*range(2000), 10**9, 10**12 + 1]
    made = [prepared[n % len(prepared)].numbered(n // len(prepared)) for n in numbers]
    assert len({request.body for request in made}) == len(numbers)
    assert made[5] == prepared[5 % len(prepared)].numbered(5 // len(prepared))
    for request in made[:50] + made[-2:]:
        array = values_in(request, transport, payloads)[name].ravel()
        if spec.data_type == "BYTES":
            text = array[0].decode()
            assert text.endswith((" yes é", " no é"))
            assert 12 <= len(text.split()[0]) <= 20
            assert text.split()[0].isalpha()
        elif spec.choices:
            assert {*array.tolist()} <= {*spec.choices}
        else:
            plain = array.astype(np.float64)
            inside = (plain >= spec.minimum) & (plain <= spec.maximum)
            # Beyond the length, positions keep the padding.
            assert inside[: 8 if name == "ids" else None].all()
            assert all(inside | (plain == spec.pad))


def test_other_tensors_of_a_request_are_left_alone() -> None:
    payloads = Payloads((TENSORS["ids"], TENSORS["mask"]), LengthDistribution((8,), (1.0,)))
    [request] = pool(payloads, Transport(), count=1)
    message = service_pb2.ModelInferRequest.FromString(request.numbered(12345).body)
    assert [each.name for each in message.inputs] == ["ids", "mask"]
    assert np.frombuffer(message.raw_input_contents[1], np.int64).tolist() == [1] * 8


def test_requests_that_differ_in_nothing_but_their_digits_are_one() -> None:
    only = Payloads((TensorSpec("x", "INT32", (1,), 0, 9),))
    prepared = pool(only, Transport())
    assert len(prepared) == 1
    assert len({prepared[0].numbered(n).body for n in range(10)}) == 10


def test_words_are_replaced_by_others_of_the_vocabulary() -> None:
    words = ("red", "sky", "blue", "gray", "ä1")
    spec = TensorSpec("TEXT", "BYTES", (1,), pattern=f"({'|'.join(words)})( (red|blue)){{2}}")
    payloads = Payloads((spec,))
    requests = payloads.sample(20, np.random.default_rng(1))
    for request in requests:
        [text] = request["TEXT"].ravel().tolist()
        digits = variations_of(payloads, request)["TEXT"]
        # The serialised text follows its length.
        body = SerialisedRequest("m", bytes(4) + text, digits=digits)
        made = {body.numbered(n).body[4:].decode() for n in range(body.variants)}
        assert len(made) == body.variants
        assert text.decode() in made
        for other in made:
            first, *others = other.split(" ")
            assert first in words
            assert set(others) <= {"red", "blue"}
            assert len(other.encode()) == len(text)


def test_how_many_different_requests_a_model_has() -> None:
    def different(*tensors: TensorSpec) -> int:
        return least_different(Payloads(tensors, LengthDistribution((2, 16), (1.0, 1.0))))

    assert different(TensorSpec("x", "INT32", (1,), 0, 9)) == 10
    assert different(TensorSpec("x", "BOOL", (5,), 0, 1)) == 32
    assert different(TENSORS["mask"]) == 1
    assert different(TENSORS["ids"]) == 995**2, "the shortest request has two positions"
    assert different(TENSORS["text"], TENSORS["image"]) == ENOUGH
    listed = TensorSpec("x", "BYTES", (1,), choices=("a", "bc"))
    assert different(listed) == 1, "texts of other lengths do not fit"
    words = TensorSpec("x", "BYTES", (1,), pattern="(red|sky|sun|blue)( (red|sky|sun|blue)){1,3}")
    assert different(words) == 1, "blue blue has no other"
    same = TensorSpec("x", "BYTES", (1,), pattern="(red|sky|sun)( (red|sky|sun)){1,3}")
    assert different(same) == 3**2, "two words at least"
    file = RequestFile(cast("object", None), "", 12, (12,))  # type: ignore[arg-type]
    rows = Payloads((TensorSpec("x", "INT32", (1,), from_file=True),), file=file)
    assert least_different(rows) == 12
    assert least_different(rows, batch_size=3) == 4
    sized = replace(rows, file=None, tensors=(TensorSpec("y", "INT8", ("n",), 0, 1),))
    sizes = LengthDistribution((3, 4), (1.0, 1.0))
    assert least_different(replace(sized, dimensions=(Dimension("n", sizes),))) == 8


@pytest.mark.serial
def test_a_client_sends_no_unique_request_twice_and_ends_with_its_numbers(serve: Serve) -> None:
    server = serve(at_once)
    plain = target(server.endpoint)
    payloads = Payloads((TENSORS["ids"],), LengthDistribution((8,), (1.0,)))
    [item] = plain.streams
    unique = replace(plain, streams=(replace(item, prepared=pool(payloads, Transport())),))
    rng = np.random.default_rng(0)
    with LoadClient() as client:
        for load in (OpenLoop(1.0), ClosedLoop(4), ClosedLoop(4)):
            client.run_level(LevelPlan(load, 0.0, 0.3, 2.0), unique, rng)
        counts = Counter(server.bodies)
        assert len(counts) > 100
        assert set(counts.values()) == {1}
        [own] = unique.streams
        listed = replace(unique, streams=(replace(own, sequence=Once(np.arange(40) + 10**6)),))
        ended = client.run_level(LevelPlan(ClosedLoop(4), 0.0, 5.0, 2.0), listed, rng)
    assert ended.streams[0].sent == 40
    assert len(server.bodies) == sum(counts.values()) + 40
