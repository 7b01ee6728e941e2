"""Serialise requests once, for many transmissions.

The formats are the KServe v2 inference protocol and Triton's binary-tensor and shared-memory
extensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import shared_memory

from optimizer.triton.control import ServerControl
from optimizer.triton.shared_memory import region_prefix, reserve
from optimizer.workload.data_types import data_type_of, encoded
from optimizer.workload.streams import Tensors
from optimizer.workload.transport import Digit, SerialisedRequest, Transport
from optimizer.workload.variations import Variations, shifted


@contextmanager
def serialised(
    control: ServerControl,
    model: str,
    requests: Sequence[Tensors],
    transport: Transport,
    variations: Sequence[Variations] = (),
) -> Iterator[tuple[SerialisedRequest, ...]]:
    """Yield the requests, which are valid within the context.

    With shared memory their tensors lie in a region that is registered with the server until then.

    Args:
        variations: what may be changed in each request, which must be sent in binary and not
            through shared memory; of requests that differ in nothing else, one is yielded.

    Raises:
        ServerFailure: when the server refuses the region.
        StorageError: when there is not enough shared memory.
    """
    target = model, control.version_of(model)
    if not transport.shared_memory:
        plain = tuple(_serialise(target, tensors, transport, None) for tensors in requests)
        yield _varied(plain, requests, variations, transport) if variations else plain
        return
    name = f"{region_prefix(0)}{uuid4().hex[:12]}"
    size = sum(len(encoded(array)) for tensors in requests for array in tensors.values())
    region = shared_memory.create_shared_memory_region(name, f"/{name}", size)
    try:
        reserve(name, size)
        placements = _copy_tensors(region, name, requests)
        control.register_shared_memory(name, f"/{name}", size)
        try:
            yield tuple(
                _serialise(target, tensors, transport, placement)
                for tensors, placement in zip(requests, placements, strict=True)
            )
        finally:
            control.unregister_shared_memory(name)
    finally:
        shared_memory.destroy_shared_memory_region(region)


def _varied(
    plain: Sequence[SerialisedRequest],
    requests: Sequence[Tensors],
    variations: Sequence[Variations],
    transport: Transport,
) -> tuple[SerialisedRequest, ...]:
    varied: dict[bytes, SerialisedRequest] = {}
    for request, tensors, own in zip(plain, requests, variations, strict=True):
        digits: list[Digit] = []
        # The contents are the end of the body; over gRPC each follows its length.
        end = len(request.body)
        for name in reversed(tensors):
            content = len(encoded(tensors[name]))
            digits = [*shifted(own[name], end - content), *digits]
            end -= content + (_prefix_bytes(content) if transport.protocol == "grpc" else 0)
        numbered = replace(request, digits=tuple(digits))
        varied.setdefault(numbered.numbered(0).body, numbered)
    return tuple(varied.values())


def _prefix_bytes(length: int) -> int:
    """Return the size of a field's tag and length in a protobuf message."""
    return 1 + max(1, math.ceil(length.bit_length() / 7))


Placement = dict[str, dict[str, Any]]
"""Shared-memory parameters of a request's inputs, by input."""


def _copy_tensors(region: object, name: str, requests: Sequence[Tensors]) -> list[Placement]:
    """Copy every tensor into the region, one after the other."""
    offset, placements = 0, []
    for tensors in requests:
        placement: Placement = {}
        for tensor, array in tensors.items():
            content = np.frombuffer(encoded(array), dtype=np.uint8)
            shared_memory.set_shared_memory_region(region, [content], offset=offset)
            placement[tensor] = {
                "shared_memory_region": name,
                "shared_memory_byte_size": content.nbytes,
                "shared_memory_offset": offset,
            }
            offset += content.nbytes
        placements.append(placement)
    return placements


_Target = tuple[str, str]
"""A model and its version, which is empty for the newest."""


def _serialise(
    target: _Target, tensors: Tensors, transport: Transport, placement: Placement | None
) -> SerialisedRequest:
    if transport.protocol == "grpc":
        return _over_grpc(target, tensors, placement)
    return _over_http(target, tensors, transport, placement)


def _over_grpc(target: _Target, tensors: Tensors, placement: Placement | None) -> SerialisedRequest:
    model, version = target
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, array in tensors.items():
        item = request.inputs.add(name=name, datatype=data_type_of(array), shape=array.shape)
        if placement is None:
            request.raw_input_contents.append(encoded(array))
            continue
        for key, value in placement[name].items():
            if isinstance(value, str):
                item.parameters[key].string_param = value
            else:
                item.parameters[key].int64_param = value
    return SerialisedRequest(model, bytes(request.SerializeToString()), version=version)


def _over_http(
    target: _Target, tensors: Tensors, transport: Transport, placement: Placement | None
) -> SerialisedRequest:
    inputs: list[dict[str, Any]] = []
    tail = b""
    for name, array in tensors.items():
        item: dict[str, Any] = {
            "name": name,
            "datatype": data_type_of(array),
            "shape": list(array.shape),
        }
        if placement is not None:
            item["parameters"] = placement[name]
        elif transport.encoding == "json":
            item["data"] = [_json_value(value) for value in array.ravel().tolist()]
        else:
            content = encoded(array)
            item["parameters"] = {"binary_data_size": len(content)}
            tail += content
        inputs.append(item)
    binary = transport.encoding == "binary"
    document = {"inputs": inputs, "parameters": {"binary_data_output": binary}}
    head = json.dumps(document, separators=(",", ":")).encode()
    model, version = target
    return SerialisedRequest(model, head + tail, len(head) if tail else None, version)


def _json_value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
