"""What a bundle says of itself: manifest.json, and load.json that tells how it is loaded.

A bundle is a directory that `optimizer serve` starts, or a tritonserver of one's own:

    README.md, requirements.txt     for people; for the interpreter of Python-hosted models
    manifest.json, load.json        this module
    MODEL/config.pbtxt              commented with where each value comes from
    MODEL/1/...                     the model file, and model.py of a Python-hosted one
    MODEL/labels.txt                where the source names its classes
    MODEL/examples.npz              a few inputs, and what the measured server answered
    MODEL/graph/..., recipe.json    of a TensorRT engine: what `rebuild_engines.py` builds it from
    rebuild_engines.py, build_engine.py

Nothing in it names the machine that it was made on; all paths are relative to the bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import UsageError, storage_errors
from optimizer.files.untrusted import (
    UnreadableError,
    check_ranges,
    is_safe_name,
    parse_json,
    read_bytes,
)
from optimizer.measurement.cost import Price, Score
from optimizer.measurement.level import LoadLevel
from optimizer.space_file.reader import MeasurementSettings
from optimizer.space_file.section import first_mistake
from optimizer.study.searched_space import check_workload
from optimizer.workload.model_spec import AccuracyLimits
from optimizer.workload.streams import Workload

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
LOAD = "load.json"
EXAMPLES = "examples.npz"
GRAPH = "graph"
RECIPE = "recipe.json"
REBUILD = "rebuild_engines.py"
UNKNOWN = "unknown"

ServerKind = Literal["embedded", "docker", "remote"]


@dataclass(frozen=True)
class Versions:
    """What the figures were measured with; a version that is not known is None.

    Attributes:
        server: which kind of host served.
        image: of a container, with its tag.
        triton: that the server gave as its own when the examples were recorded; None where none
            was asked. TensorRT's is that of each engine, see `ExportedModel`.
        driver, gpus: NVIDIA's driver, and the models of the GPUs by logical index.
        python: of the program that measured.
        packages: installed there, by name: those that a Python-hosted model needs, and its client.
    """

    server: ServerKind
    image: str | None
    triton: str | None
    driver: str | None
    gpus: tuple[str, ...]
    cpu: str
    cores: int
    memory_gib: int
    cpu_features: tuple[str, ...]
    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class ExportedModel:
    """One model of the bundle.

    Attributes:
        config: Triton's ModelConfig as it was measured, as JSON has it (protobuf names); what a
            server runs is held against it.
        output: name of the tensor that it answers with.
        artifact_sha256: digest of the model file, as the artefact cache counts it.
        licence: as the model's source states it, else "unknown".
        tolerance: how close outputs must come to the recorded ones: the limits of the accuracy
            gate, less the task's metric, whose function and data stay where they are.
        examples: file of the recorded examples, None where there are none.
        engine: what a TensorRT engine was built with and for, None for other files.
        rebuilt: whether the engine was built anew since it was measured.
        graph: folder that the engine can be built anew from, None where there is none.
        packages: requirements of a Python-hosted model, such as "numpy==1.26.4".
    """

    name: str
    config: Mapping[str, Any]
    output: str
    artifact_sha256: str
    licence: str
    tolerance: AccuracyLimits
    examples: str | None = None
    engine: EngineFacts | None = None
    rebuilt: bool = False
    graph: str | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limit:
    """The latency limit of one stream of requests, and the load that it was asked for.

    Attributes:
        model: that the stream asks.
        demand_per_second: of the whole fleet.
    """

    stream: str
    model: str
    percentile: float
    latency_ms: float
    demand_per_second: float


@dataclass(frozen=True)
class MeasuredFigures:
    """What one replica serves, over all streams.

    Attributes:
        confirmed: whether the figures are of the confirm phase.
        capacity_low_per_second, capacity_high_per_second: interval at `estimates.CONFIDENCE`; no
            upper bound where no load was too much.
        at_capacity, at_demand: the levels nearest to the capacity and to the load of one replica,
            each None where there is none; they hold percentiles with intervals, the server's own
            times and the batch sizes that were executed.
    """

    confirmed: bool
    capacity_per_second: float
    capacity_low_per_second: float
    capacity_high_per_second: float | None
    at_capacity: LoadLevel | None
    at_demand: LoadLevel | None


@dataclass(frozen=True)
class Recommended:
    """How many replicas serve the demand, and what that costs.

    Attributes:
        demand_per_second: requests of the whole fleet.
        headroom: share kept free above the demand.
        per_replica_per_second: load of one of `score.replicas`, the headroom included.
    """

    demand_per_second: float
    headroom: float
    per_replica_per_second: float
    price: Price
    score: Score


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says of itself.

    Attributes:
        description: the configuration for people.
        trial: number of the study's trial.
        made_by: this program and its version.
        server_arguments: of tritonserver beside --model-repository.
        files: sha256 of every file of the bundle but this one, by path.
        limits: one for each stream.
        missing: what the bundle should hold and does not, with the reason.
    """

    study: str
    trial: int
    description: str
    made_by: str
    config: ServingConfig
    server_arguments: tuple[str, ...]
    models: tuple[ExportedModel, ...]
    versions: Versions
    limits: tuple[Limit, ...]
    measured: MeasuredFigures
    recommended: Recommended
    files: Mapping[str, str]
    missing: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class LoadDescription:
    """How the bundle is loaded when it is measured again.

    Attributes:
        measurement: seconds that levels last.
    """

    workload: Workload
    measurement: MeasurementSettings


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk."""

    root: Path
    manifest: Manifest
    load: LoadDescription


class _VersionedFile(BaseModel):
    schema_version: int


_VERSIONED = TypeAdapter(_VersionedFile)
_MANIFEST = TypeAdapter(Manifest)
_LOAD = TypeAdapter(LoadDescription)


LINK = "a link"
"""Stands for the digest of what lies elsewhere: an exported bundle holds no links."""

NO_FILE = "a pipe or a device"
"""Stands for the digest of what has no content of its own, which is never opened."""


def digests(root: Path) -> dict[str, str]:
    """Sha256 of every file of a bundle but its manifest, by path relative to `root`."""
    return {
        path.relative_to(root).as_posix(): _digest(path)
        for path in sorted(root.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and path != root / MANIFEST
    }


def _digest(path: Path) -> str:
    if path.is_symlink():
        return LINK
    if not path.is_file():
        return NO_FILE
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(root: Path, manifest: Manifest, load: LoadDescription) -> Bundle:
    """Write both files last, when everything else of the bundle is there.

    Returns:
        The bundle, with the digests of all its files.

    Raises:
        StorageError: when it cannot be written.
    """
    with storage_errors(root):
        (root / LOAD).write_text(_text(_LOAD.dump_python(load, mode="json")))
        whole = replace(manifest, files=digests(root))
        (root / MANIFEST).write_text(_text(_MANIFEST.dump_python(whole, mode="json")))
    return Bundle(root, whole, load)


def _text(data: object) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def read_bundle(root: Path) -> Bundle:
    """Read a bundle; whether its files are those of the manifest is not looked at.

    Raises:
        UsageError: when `root` holds no bundle, or one of another version; names file and place.
    """
    content = _read(root / MANIFEST)
    version = _validated(_VERSIONED, content, root / MANIFEST).schema_version
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{root / MANIFEST}: schema_version must be {SCHEMA_VERSION}, got {version}; "
            "use the version of the program that made_by names"
        )
    manifest = _validated(_MANIFEST, content, root / MANIFEST)
    load = _validated(_LOAD, _read(root / LOAD), root / LOAD)
    for mistake in _mistakes(manifest):
        raise UsageError(f"{root / MANIFEST}: {mistake}")
    try:
        check_workload(load.workload, [model.name for model in manifest.config.models])
    except ValueError as error:
        raise UsageError(f"{root / LOAD}: {error}") from error
    return Bundle(root, manifest, load)


def _mistakes(manifest: Manifest) -> Iterator[str]:
    """Where it contradicts itself, or leads out of the bundle."""
    served = [model.name for model in manifest.config.models]
    for name in served:
        if not is_safe_name(name):
            yield f"a model's name must be that of a folder, got {name[:80]!r}"
    if [model.name for model in manifest.models] != served:
        yield f"models must be those of config, {', '.join(served)}"
    for model in manifest.models:
        if model.examples not in (None, f"{model.name}/{EXAMPLES}"):
            yield f"models.{model.name}.examples: must be {model.name}/{EXAMPLES} or none"


def _read(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path))
    except UnreadableError as error:
        raise UsageError(f"{path.parent} is no exported bundle: {path.name} {error}") from error


_Part = TypeVar("_Part")


def _validated(adapter: TypeAdapter[_Part], content: object, path: Path) -> _Part:
    """What a file holds. Raises UsageError with the first mistake, by its place in the file."""
    try:
        part = adapter.validate_python(content)
        check_ranges(part)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_mistake(error)}") from error
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error
    return part
