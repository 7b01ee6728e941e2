"""How requests are sent: the protocol, the encoding, and a request as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Transport:
    """How requests are sent to the server.

    Attributes:
        encoding: encoding of tensors; "json" is for comparison and needs HTTP.
        shared_memory: whether inputs are in system shared memory.
    """

    protocol: Literal["grpc", "http"] = "grpc"
    encoding: Literal["binary", "json"] = "binary"
    shared_memory: bool = False


@dataclass(frozen=True)
class SerialisedRequest:
    """A request as bytes, which can be sent many times.

    Attributes:
        body: a ModelInferRequest, or the body of an HTTP request.
        json_bytes: length of the JSON before the binary tensors in the body of an HTTP request;
            None without binary tensors.
        version: of the model; empty for the newest that is served.
    """

    model: str
    body: bytes
    json_bytes: int | None = None
    version: str = ""
