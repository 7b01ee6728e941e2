"""The schema of a model's source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from optimizer.files.untrusted import is_there, parse_json, read_bytes
from optimizer.space_file.section import (
    Count,
    Name,
    Positive,
    Section,
    Seed,
    check_finite,
    folder_of,
    missing_file,
    wrong,
)
from optimizer.workload.model_spec import (
    Call,
    Calls,
    OnnxSource,
    RepositorySource,
    TransformersSource,
)


class CallSection(Section):
    """Calls of a model by a model of the Python backend."""

    model: Name = Field(description="name of the called model in the repository")
    count: Positive = Field(1, description="mean number of calls for each request of the caller")


def _form_of_calls(given: object) -> str:
    if isinstance(given, str):
        return "text"
    return "by_caller" if isinstance(given, dict) else "calls"


# Tagged, so that a mistake is reported for the form that was meant only.
_Call = Annotated[
    Annotated[Name, Tag("name")] | Annotated[CallSection, Tag("call")],
    Discriminator(lambda given: "name" if isinstance(given, str) else "call"),
]
_Calls = Annotated[list[_Call], Field(max_length=100)]
_CallsOrAuto = Annotated[
    Annotated[Literal["auto"], Tag("text")]
    | Annotated[_Calls, Tag("calls")]
    | Annotated[dict[Name, _Calls], Tag("by_caller")],
    Discriminator(_form_of_calls),
]


class SourceSection(Section):
    """The model's source: a transformers class, an ONNX file, or a Triton model repository."""

    added_keys = ("repository", "model", "version", "calls")

    class_name: str | None = Field(
        None, alias="class", description="class of the transformers package"
    )
    config: dict[str, JsonValue] | None = Field(
        None, description="configuration of the architecture, with random weights; no download"
    )
    seed: Seed = Field(0, description="random seed of the weights")
    checkpoint: str | None = Field(None, description="directory or hub name of trained weights")
    onnx: str | None = Field(None, description="ONNX file, with external data beside it")
    repository: str | None = Field(
        None, description="model repository of Triton, whose model is served as it is"
    )
    model: Name | None = Field(None, description="name of the model in the repository")
    version: Count | None = Field(
        None, description="version that is measured; by default the newest that is served"
    )
    calls: _CallsOrAuto | None = Field(
        None,
        description="models that a BLS model calls, in the order of the calls; if several "
        "models call others, a list for each caller; auto counts the calls on a"
        " server",
    )

    @field_validator("config")
    @classmethod
    def _finite(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        check_finite(config)
        return config

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        kinds = ("config", "checkpoint", "onnx", "repository")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise wrong("", f"must have exactly one of {', '.join(kinds)}", given)
        if (given[0] in ("config", "checkpoint")) != (self.class_name is not None):
            raise wrong(
                "class",
                "must be given with config or checkpoint, and only with one of them",
                self.class_name,
            )
        if (self.repository is None) != (self.model is None):
            raise wrong("model", "must be given with repository, and only with it", self.model)
        if self.version is not None and self.repository is None:
            raise wrong("version", "must be given only with repository", self.version)
        if self.calls is not None and self.repository is None:
            raise wrong("calls", "must be given only with repository", self.calls)
        return self

    @field_validator("onnx", "checkpoint", "repository")
    @classmethod
    def _exists(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is None or (info.field_name == "checkpoint" and not _looks_local(given)):
            return given
        if not is_there(path := folder_of(info) / given):
            raise missing_file(path)
        return given

    def configuration(self, folder: Path) -> dict[str, Any]:
        """Return the configuration of a transformers model; empty where it needs a download."""
        config: object = self.config
        if self.checkpoint is not None:
            file = folder / self.checkpoint / "config.json"
            config = parse_json(read_bytes(file)) if is_there(file) else {}
        return config if isinstance(config, dict) else {}

    def config_limits(self, folder: Path) -> dict[str, int]:
        """Return whole numbers of the model's configuration, if it needs no download."""
        items = self.configuration(folder).items()
        return {key: value for key, value in items if isinstance(value, int)}

    def to_value(self, folder: Path) -> TransformersSource | OnnxSource | RepositorySource:
        """Return the source, with paths resolved against the file's folder."""
        if self.onnx is not None:
            return OnnxSource((folder / self.onnx).resolve())
        if self.repository is not None:
            repository = (folder / self.repository).resolve()
            calls = self._calls(self.model or "")
            return RepositorySource(repository, self.model or "", self.version, calls=calls)
        checkpoint = self.checkpoint
        if checkpoint is not None and _looks_local(checkpoint):
            checkpoint = str((folder / checkpoint).resolve())
        config = json.dumps(self.config or {}, sort_keys=True)
        return TransformersSource(self.class_name or "", checkpoint, config, self.seed)

    def _calls(self, model: str) -> Calls | None:
        if self.calls is None:
            return ()
        if self.calls == "auto":
            return None
        by_caller = self.calls if isinstance(self.calls, dict) else {model: self.calls}
        return tuple((caller, tuple(map(_call, own))) for caller, own in by_caller.items())


def _call(given: str | CallSection) -> Call:
    return Call(given) if isinstance(given, str) else Call(given.model, given.count)


def _looks_local(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/")) or checkpoint.count("/") > 1
