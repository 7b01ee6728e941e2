"""Whether a model answers, by a client library that is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from optimizer.errors import ServerFailure
from optimizer.triton import control
from optimizer.triton.control import Endpoint, ServerControl

Reply = Callable[[object, object], None]


@dataclass
class Client:
    """A server that executes something at every reading of its counters, for a while."""

    ready: bool = True
    busy_readings: int = 0
    error: InferenceServerException | None = None
    answers_after: int | None = 0
    readings: int = 0
    waiting: list[Reply] = field(default_factory=list)

    def is_model_ready(self, model: str, **_: object) -> bool:
        return self.ready

    def async_infer(self, model: str, inputs: object, callback: Reply, **_: object) -> None:
        self.waiting.append(callback)
        self._answer()

    def get_inference_statistics(self, model: str, **_: object) -> Any:
        self.readings += 1
        self._answer()
        counted = SimpleNamespace(
            version="1",
            execution_count=min(self.readings, self.busy_readings),
            inference_stats=SimpleNamespace(fail=SimpleNamespace(count=0)),
        )
        return SimpleNamespace(model_stats=[counted])

    def _answer(self) -> None:
        if self.answers_after is not None and self.readings > self.answers_after:
            while self.waiting:
                self.waiting.pop()(None, self.error)


def asked(client: Client) -> str | None:
    own = ServerControl(Endpoint("127.0.0.1:1", "", ""))
    own.close()
    own._client = client
    return own.error_of_one_request("bert", {}, 0.02)


def test_a_model_that_answers_is_alive_even_by_an_error() -> None:
    assert asked(Client()) is None
    assert asked(Client(error=InferenceServerException("too long"))) == "too long"


def test_a_model_that_is_not_ready_is_none() -> None:
    with pytest.raises(ServerFailure, match="the server reports that bert is not ready"):
        asked(Client(ready=False))


def test_a_model_that_executes_nothing_hangs() -> None:
    with pytest.raises(ServerFailure, match=r"bert executed nothing and did not answer for 0\.02"):
        asked(Client(answers_after=None))


def test_a_model_with_a_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(busy_readings=20, answers_after=5)
    assert asked(client) is None
    assert client.readings > 5
    monkeypatch.setattr(control, "_LONGEST_QUEUE_SECONDS", 0.1)
    assert asked(Client(busy_readings=10**6, answers_after=None)) is None, "it lives, and is busy"
