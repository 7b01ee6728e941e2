"""How requests are sent: the protocol, the encoding, and a request as bytes."""

from __future__ import annotations

import math
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
class Digit:
    """Bytes of a request that have one of several values.

    Attributes:
        offset: of the first byte.
        width: number of bytes.
        values: all values, one after the other.
    """

    offset: int
    width: int
    values: bytes

    @property
    def base(self) -> int:
        """Number of values."""
        return len(self.values) // self.width


@dataclass(frozen=True)
class SerialisedRequest:
    """A request as bytes, which can be sent many times.

    Attributes:
        body: a ModelInferRequest, or the body of an HTTP request.
        json_bytes: length of the JSON before the binary tensors in the body of an HTTP request;
            None without binary tensors.
        version: of the model; empty for the newest that is served.
        digits: bytes of the body that `numbered` replaces, in their order.
    """

    model: str
    body: bytes
    json_bytes: int | None = None
    version: str = ""
    digits: tuple[Digit, ...] = ()

    @property
    def variants(self) -> int:
        """Number of different requests that `numbered` makes."""
        return math.prod(digit.base for digit in self.digits)

    def numbered(self, number: int) -> SerialisedRequest:
        """Return the request with the digits of a number, which are the same for equal numbers."""
        if not self.digits:
            return self
        # Views, so that a large body is copied once.
        body, end = memoryview(self.body), 0
        parts: list[bytes | memoryview] = []
        for digit in self.digits:
            number, value = divmod(number, digit.base)
            begin = value * digit.width
            parts += body[end : digit.offset], digit.values[begin : begin + digit.width]
            end = digit.offset + digit.width
        parts.append(body[end:])
        return SerialisedRequest(self.model, b"".join(parts), self.json_bytes, self.version)
