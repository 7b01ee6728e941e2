"""Layout of a bundle, and its manifest.json and load.json.

A bundle is a directory that `optimizer serve` or any suitable tritonserver starts:

    README.md, requirements.txt     for people, and for the interpreter of Python-hosted models
    manifest.json                   what was exported, and its measurements
    load.json                       the load of the measurement
    MODEL/config.pbtxt              with comments that say where each value comes from
    MODEL/1/...                     the model file, and model.py of a Python-hosted model
    MODEL/labels.txt                class names, if the model's source has them
    MODEL/examples.npz              a few inputs, and the outputs of the measured server
    MODEL/graph/..., recipe.json    what `rebuild_engines.py` builds a TensorRT engine from
    rebuild_engines.py, build_engine.py

An export of the format `patch` has a patch of a model repository, and no files of its models:

    README.md, manifest.json, load.json, MODEL/examples.npz     as above
    repository.patch                                            for `patch -p1` or `git apply`

Nothing in it identifies the machine that made it; all paths are relative to the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import UsageError, storage_errors
from optimizer.files.untrusted import (
    UnreadableError,
    check_ranges,
    is_one_folder,
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
PATCH = "repository.patch"
GRAPH = "graph"
RECIPE = "recipe.json"
REBUILD = "rebuild_engines.py"
UNKNOWN = "unknown"

ServerKind = Literal["embedded", "docker", "remote"]


@dataclass(frozen=True)
class Versions:
    """Software and hardware of the measurement; an unknown version is None.

    Attributes:
        server: kind of the host.
        image: of the container, with its tag.
        triton: version that the server reported when the examples were recorded; None without
            examples. `ExportedModel.engine` has the version of TensorRT.
        driver: of NVIDIA.
        gpus: models, by logical index.
        python: version of the program that measured.
        packages: installed versions, by package: the client's and those that Python-hosted models
            need.
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
        config: Triton's ModelConfig in the measurement, as JSON with protobuf's names; `verify`
            compares it with what the server runs.
        artifact_sha256: digest of the model file, as in the artefact cache.
        licence: as stated by the model's source, else "unknown".
        tolerance: how much outputs may differ from the recorded ones: the limits of the accuracy
            gate without the task's own metric, whose function and data are not exported.
        examples: path of the recorded examples, None without any.
        engine: TensorRT version and GPU of an engine, None for other files.
        rebuilt: whether the engine was rebuilt after the measurement.
        graph: folder that the engine can be rebuilt from, None without one.
        packages: requirements of a Python-hosted model, such as "numpy==1.26.4".
        folder: of the model in the repository that a patch is for; empty where that is its name.
    """

    name: str
    config: Mapping[str, Any]
    artifact_sha256: str
    licence: str
    tolerance: AccuracyLimits
    examples: str | None = None
    engine: EngineFacts | None = None
    rebuilt: bool = False
    graph: str | None = None
    packages: tuple[str, ...] = ()
    folder: str = ""

    @property
    def source_folder(self) -> str:
        """Name of the folder that holds the model."""
        return self.folder or self.name


@dataclass(frozen=True)
class Limit:
    """The latency limit and the demand of one stream of requests.

    Attributes:
        model: target of the stream.
        demand_per_second: on the whole fleet.
    """

    stream: str
    model: str
    percentile: float
    latency_ms: float
    demand_per_second: float


@dataclass(frozen=True)
class MeasuredFigures:
    """Capacity of one replica, over all streams.

    Attributes:
        confirmed: whether the figures come from the confirm phase.
        capacity_low_per_second, capacity_high_per_second: interval at `estimates.CONFIDENCE`;
            without an upper bound where every load met the limits.
        at_capacity, at_demand: the load levels nearest to the capacity and to the load of one
            replica, if any, with percentiles, server times and batch sizes.
    """

    confirmed: bool
    capacity_per_second: float
    capacity_low_per_second: float
    capacity_high_per_second: float | None
    at_capacity: LoadLevel | None
    at_demand: LoadLevel | None


@dataclass(frozen=True)
class Recommended:
    """Replicas for the demand, and their cost.

    Attributes:
        demand_per_second: requests/s on the whole fleet.
        headroom: spare capacity as a share of the demand.
        per_replica_per_second: load on one of `score.replicas`, headroom included.
    """

    demand_per_second: float
    headroom: float
    per_replica_per_second: float
    price: Price
    score: Score


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        description: the configuration for people.
        trial: number in the study.
        made_by: this program and its version.
        server_arguments: of tritonserver, without --model-repository.
        files: sha256 of every other file of the bundle, by path.
        limits: one per stream.
        missing: what the bundle lacks, with the reason.
        patched: sha256 of every file of its models in the repository that the patch is for, as they
            are when it is applied, by path; empty where the bundle has its models.
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
    patched: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class LoadDescription:
    """Content of load.json: the load under which the bundle is measured again.

    Attributes:
        measurement: durations of load levels.
    """

    workload: Workload
    measurement: MeasurementSettings


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        repository: where its patch was applied; None where the bundle has its models.
    """

    root: Path
    manifest: Manifest
    load: LoadDescription
    repository: Path | None = None

    @property
    def models(self) -> Path:
        """The folder with the folders of its models."""
        return self.repository or self.root

    @property
    def folders(self) -> Mapping[str, Path]:
        """The folder of each model, by its name."""
        return {each.name: self.models / each.source_folder for each in self.manifest.models}


class _VersionedFile(BaseModel):
    schema_version: int


_VERSIONED = TypeAdapter(_VersionedFile)
_MANIFEST = TypeAdapter(Manifest)
_LOAD = TypeAdapter(LoadDescription)


LINK = "a link"
"""In place of the digest of a link: an exported bundle has none."""

NO_FILE = "a pipe or a device"
"""In place of the digest of what is neither file nor folder, and is never opened."""


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of a bundle but its manifest, by path relative to `root`."""
    return {
        path.relative_to(root).as_posix(): _digest(path)
        for path in sorted(root.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and path != root / MANIFEST
    }


def model_digests(repository: Path, models: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of every file of these models, by path relative to `repository`.

    Links are followed, as a server does: a repository may keep its weights elsewhere. What Python
    has compiled there is left out.
    """
    paths = (
        Path(folder, file)
        for model in models
        for folder, _, files in os.walk(repository / model, followlinks=True)
        if "__pycache__" not in Path(folder).parts
        for file in files
    )
    return {path.relative_to(repository).as_posix(): _content_digest(path) for path in paths}


def _digest(path: Path) -> str:
    return LINK if path.is_symlink() else _content_digest(path)


def _content_digest(path: Path) -> str:
    if not path.is_file():
        return NO_FILE
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(root: Path, manifest: Manifest, load: LoadDescription) -> Bundle:
    """Write both files, after everything else of the bundle.

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
    """Read a bundle, without comparing its files with the manifest.

    Raises:
        UsageError: when `root` holds no bundle, or one of another version, naming file and key.
    """
    content = _read(root / MANIFEST)
    version = _validated(_VERSIONED, content, root / MANIFEST).schema_version
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{root / MANIFEST}: schema_version must be {SCHEMA_VERSION}, got {version}; "
            "use the version of the program that is named by made_by"
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
    """Yield contradictions, and paths that lead out of the bundle."""
    served = [model.name for model in manifest.config.models]
    for name in served:
        if not is_safe_name(name):
            yield f"a model's name must be the name of a folder, got {name[:80]!r}"
    if [model.name for model in manifest.models] != served:
        yield f"models must be the models of config, {', '.join(served)}"
    for model in manifest.models:
        if not is_one_folder(model.source_folder):
            yield f"models.{model.name}.folder: must be a name without /, got {model.folder[:80]!r}"
        if model.examples not in (None, f"{model.name}/{EXAMPLES}"):
            yield f"models.{model.name}.examples: must be {model.name}/{EXAMPLES} or none"


def _read(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path))
    except UnreadableError as error:
        raise UsageError(f"{path.parent} is not an exported bundle: {path.name} {error}") from error


_Part = TypeVar("_Part")


def _validated(adapter: TypeAdapter[_Part], content: object, path: Path) -> _Part:
    """Return the content of a file. Raises UsageError with the first mistake and its key."""
    try:
        part = adapter.validate_python(content)
        check_ranges(part)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_mistake(error)}") from error
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error
    return part
