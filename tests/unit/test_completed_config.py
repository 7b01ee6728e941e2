"""What a server completes in a configuration, what of it is kept, and who is asked for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.commands import completed_source
from optimizer.commands.completed_source import complete_source
from optimizer.configuration.hosting import EmbeddedHost, Host, RemoteHost
from optimizer.errors import ModelLoadFailure, RequirementError, UsageError
from optimizer.triton.completed_config import completed_text, left_out
from optimizer.workload.model_spec import Call, RepositorySource
from tests.unit.repositories import MAIL, config_of

RUNNING = """
name: "served"
backend: "python"
version_policy { latest { num_versions: 1 } }
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: 4 }
output { name: "Y" data_type: TYPE_FP32 dims: [ -1, 2 ] }
instance_group { name: "served" count: 1 kind: KIND_CPU }
default_model_filename: "model.py"
dynamic_batching { preferred_batch_size: 8 }
optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
"""
"""As the embedded server answers for a model without a config.pbtxt."""

TENSORS = """\
max_batch_size: 8
input {
  name: "X"
  data_type: TYPE_FP32
  dims: [4]
}
output {
  name: "Y"
  data_type: TYPE_FP32
  dims: [-1, 2]
}
"""


def test_a_missing_file_gets_what_describes_the_model_and_no_defaults() -> None:
    assert completed_text("", config_of(RUNNING)) == (
        f'backend: "python"\n{TENSORS}dynamic_batching {{\n}}\n'
    )


def test_what_the_file_has_stays_as_it_is_written() -> None:
    text = (
        '# Ours.\nname: "mail"\nplatform: "x"  # kept\n'
        "dynamic_batching { max_queue_delay_microseconds: 5 }\n"
        'parameters { key: "a" value { string_value: "b" } }\n'
    )
    assert completed_text(text, config_of(RUNNING)) == text + TENSORS


def test_a_complete_file_is_not_changed() -> None:
    assert left_out(MAIL) == ()
    running = config_of(MAIL)
    running.name, running.default_model_filename = "served", "model.py"
    running.optimization.input_pinned_memory.enable = True
    assert completed_text(MAIL, running) == MAIL


def test_what_a_model_does_not_support_is_completed_too() -> None:
    running = config_of(RUNNING)
    running.model_transaction_policy.decoupled = True
    assert config_of(completed_text("", running)).model_transaction_policy.decoupled


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", ("max_batch_size", "input", "output")),
        ("max_batch_size: 0", ("input", "output")),
        ("max_batch_size: 0 input { name: 'X' dims: 1 } output { name: 'Y' }", ("input", "output")),
        (TENSORS.partition("\n")[2], ("max_batch_size",)),
        ("ensemble_scheduling { step [ ] }", ()),
    ],
)
def test_what_is_left_out(text: str, missing: tuple[str, ...]) -> None:
    assert left_out(text) == missing


@pytest.fixture
def source(tmp_path: Path) -> RepositorySource:
    (tmp_path / "mail" / "1").mkdir(parents=True)
    return RepositorySource(tmp_path, "mail")


def completed(source: RepositorySource) -> str:
    return complete_source("served", source, EmbeddedHost(), ()).completed


def answer(monkeypatch: pytest.MonkeyPatch, complete: Callable[[], ModelConfig]) -> list[str]:
    """Let a function complete configurations in place of a server; return the names of models."""
    names: list[str] = []
    monkeypatch.setattr(
        completed_source, "require_server", lambda _, needs, __: names.extend(needs.models)
    )
    monkeypatch.setattr(completed_source, "completing_server", lambda *_: nullcontext((None, None)))

    def load(name: str, *_: object) -> ModelConfig:
        names.append(name)
        return complete()

    monkeypatch.setattr(completed_source, "loaded_as_it_is", load)
    return names


def running() -> ModelConfig:
    return config_of(RUNNING)


def test_a_server_is_asked_only_where_something_is_left_out(
    source: RepositorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = answer(monkeypatch, running)
    assert config_of(completed(source)).max_batch_size == 8
    assert names == ["mail", "mail"]
    for text in (MAIL, "sequence_batching { }"):  # which is refused anyway
        (source.folder / "config.pbtxt").write_text(text)
        assert completed(source) == ""
    assert names == ["mail", "mail"]


REMOTE = RemoteHost("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", Path("models"))


@pytest.mark.parametrize(
    ("folder", "host", "name"),
    [
        ("mail.python", EmbeddedHost(), "mail.python"),
        ("my mail", EmbeddedHost(), "served"),
        ("mail.python", REMOTE, "served"),
    ],
)
def test_a_model_has_its_own_name_where_that_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, host: Host, name: str
) -> None:
    """Triton takes the backend from a name such as mail.python."""
    (tmp_path / folder / "1").mkdir(parents=True)
    names = answer(monkeypatch, running)
    complete_source("served", RepositorySource(tmp_path, folder), host, ())
    assert names == [name, name]


@pytest.mark.parametrize(
    ("text", "rule"),
    [(None, "config.pbtxt is missing"), ("max_batch_size: 8", "leaves out input, output")],
)
def test_what_no_server_completes_is_refused_with_the_reason(
    source: RepositorySource, monkeypatch: pytest.MonkeyPatch, text: str | None, rule: str
) -> None:
    if text is not None:
        (source.folder / "config.pbtxt").write_text(text)

    def fail() -> ModelConfig:
        raise ModelLoadFailure("no such module")

    answer(monkeypatch, fail)
    with pytest.raises(RequirementError, match=rf"{rule}.*could not complete it \(no such module"):
        completed(source)
    answer(monkeypatch, ModelConfig)
    with pytest.raises(UsageError, match=rf"{rule}, and the server does not complete input, out"):
        completed(source)


def test_steps_are_completed_by_the_same_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top" / "1").mkdir(parents=True)
    (tmp_path / "top" / "config.pbtxt").write_text(MAIL)
    (tmp_path / "second" / "1").mkdir(parents=True)
    (tmp_path / "inner" / "1").mkdir(parents=True)
    calls = (("top", (Call("first"), Call("second"), Call("gone"))), ("first", (Call("inner"),)))
    (tmp_path / "first" / "1").mkdir(parents=True)
    names = answer(monkeypatch, running)
    made = complete_source("t", RepositorySource(tmp_path, "top", calls=calls), EmbeddedHost(), ())
    assert names == 2 * ["inner", "first", "second"]
    assert {name for name, _ in made.completions} == {"inner", "first", "second"}
    assert made.completed == ""
    assert config_of(made.step("first").completed).max_batch_size == 8
