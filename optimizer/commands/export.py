"""Export a study's configuration as a directory for production, in one of several formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.commands.bundle_serving import (
    BundleHost,
    ServerSettings,
    bundle_host,
    served_bundle,
)
from optimizer.commands.code_consent import CodeConsent
from optimizer.commands.platforms import refuse_unfit, write_platform
from optimizer.commands.run_context import artifact_cache
from optimizer.configuration.hosting import ContainerHost
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import (
    ChangedRequestsError,
    DamagedStudyError,
    StorageError,
    UsageError,
    storage_errors,
)
from optimizer.export.bundle.examples import draw_requests, write_examples
from optimizer.export.bundle.manifest import (
    EXAMPLES,
    Bundle,
    LoadDescription,
    Manifest,
    Versions,
    write_manifest,
)
from optimizer.export.bundle.study_artifacts import StudyArtifacts
from optimizer.export.bundle.study_bundle import (
    ExportSource,
    PatchBase,
    append_readme,
    write_study_bundle,
)
from optimizer.export.patch_format import as_patch, patch_base, refuse_changed
from optimizer.export.platforms.formats import PLATFORMS
from optimizer.export.repository_format import as_repository
from optimizer.files.owned_names import FOLDER_PREFIX, temporary_folder
from optimizer.files.shipped import shipped
from optimizer.measurement.trial_record import TrialRecord
from optimizer.space_file.reader import MeasurementSettings, read_host
from optimizer.study.decision import ConfirmedCapacity, contradicted_by
from optimizer.study.events import StepStarted, Watcher
from optimizer.study.files import read_source_cards
from optimizer.workload.model_spec import AccuracyLimits

Format = Callable[[Bundle, ExportSource, Path], None]
"""Writes a format of a bundle into an empty folder, which is renamed when it is complete.

The bundle is in another folder, which is removed afterwards: the format moves or copies its files.
"""


def _as_repository(bundle: Bundle, _: ExportSource, target: Path) -> None:
    as_repository(bundle, target)


FORMATS: Mapping[str, Format] = {
    "repository": _as_repository,
    "patch": as_patch,
    **{name: partial(write_platform, name) for name in PLATFORMS},
}
"""Formats by name."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export`.

    Attributes:
        target: folder to write; must not exist, or be empty.
        format: one of `FORMATS`.
        trial: number of a trial of the study; None is its best.
        server: that records the examples; None is that of the study's measurements.
        examples: whether example outputs are recorded, which needs a server.
        allow_code: whether recording examples runs code of the study that was not made here.
        cache: has the files that are not in the study's folder.
        base: model repository that the format `patch` is for; goes with that only.
    """

    study: str
    target: Path
    format: str = "repository"
    trial: int | None = None
    server: ServerSettings | None = None
    examples: bool = True
    allow_code: bool = False
    results: Path = Path("results")
    cache: Path | str | None = None
    base: Path | None = None


def export_study(options: ExportOptions, watch: Watcher, made_by: str) -> Manifest:
    """Export a configuration of a study; after an error `target` is as it was.

    Args:
        options: see `ExportOptions`.
        watch: is called with every event.
        made_by: this program and its version, for the manifest.

    Returns:
        The manifest of the bundle.
    """
    _refuse_occupied(options.target)
    study = read_study(options.results, options.study)
    finding = _finding(study, options.trial)
    config = finding.candidate.config
    refuse_unfit(options.format, study, finding)
    base = _base(options, study, config)
    content = _Content(study)
    where = None
    if options.examples:
        where = bundle_host(options.server or content.server, config)
    target = options.target.absolute()
    # Beside the target, so that the bundle is renamed and not copied.
    with temporary_folder(target.parent, f".{FOLDER_PREFIX}") as work:
        watch(StepStarted(f"writing {describe(config)}"))
        cache = artifact_cache(options.cache)
        artifacts = StudyArtifacts(study, cache, work / "staging")
        source = ExportSource(
            study=study,
            finding=finding,
            artifacts={m.name: artifacts.find(m.artifact) for m in config.models},
            tolerances=content.tolerances(config),
            versions=content.versions(),
            cards=read_source_cards(study.directory),
            made_by=made_by,
            base=base,
        )
        if base is not None:
            refuse_changed(source)
        root, out = work / "bundle", work / "out"
        manifest = write_study_bundle(root, shipped("model_repository_templates"), source)
        load = LoadDescription(study.searched.workload, content.measurement)
        manifest = _with_examples(
            root, manifest, load, where, CodeConsent(cache, options.allow_code, watch)
        )
        append_readme(root, manifest)
        bundle = write_manifest(root, manifest, load)
        with storage_errors(target):
            out.mkdir()
            FORMATS[options.format](bundle, source, out)
            out.rename(target)
    return bundle.manifest


def _base(options: ExportOptions, study: StudyReading, config: ServingConfig) -> PatchBase | None:
    """Return what a patch is for; None for other formats."""
    if options.format == "patch":
        return patch_base(study, config, options.base)
    if options.base is not None:
        raise UsageError("--base: goes with --format patch")
    return None


def _refuse_occupied(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"--to: {target} exists already, and is not a folder")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"--to: {target} exists already: give a new folder, or an empty one")


_NOT_EXPORTED = {
    "bounded": "was pruned before its capacity was measured",
    "infeasible": "did not meet the limits",
    "failed": "failed",
}
"""Why a trial cannot be exported, by its outcome."""


def _finding(study: StudyReading, trial: int | None) -> ConfirmedCapacity:
    """Return the best configuration, or that of a trial."""
    decision = study.own_decision
    if trial is None:
        if decision.best is None:
            raise UsageError(
                f"study {study.name} has nothing to export: {study.why_nothing_confirmed}"
            )
        return decision.best
    record = next((record for record in study.trials if record.number == trial), None)
    if record is None:
        numbers = ", ".join(str(each.number) for each in study.trials) or "none yet"
        raise UsageError(f"--trial: {study.name} has trials {numbers}; got {trial}")
    for contender in decision.contenders:
        if contender.config == record.config:
            return contender
    raise UsageError(f"--trial: {trial} {_why_not(study, record)}")


def _why_not(study: StudyReading, record: TrialRecord) -> str:
    """Return why a trial of a study is not exported."""
    if record.outcome != "ok":
        return f"{_NOT_EXPORTED[record.outcome]}: {record.reason}"
    confirmation = contradicted_by(study.confirmations).get(record.config)
    if confirmation is not None:
        return f"did not meet the limits when it was measured again: {confirmation.reason}"
    return "is no longer in the space: its model file was dropped when the study was resumed"


class _Content:
    """Settings of a study's space file that are not part of what it searched."""

    def __init__(self, study: StudyReading) -> None:
        self._study = study

    @property
    def server(self) -> ServerSettings:
        """The section `server`."""
        settings: ServerSettings = self._at("server")
        return settings

    @property
    def measurement(self) -> MeasurementSettings:
        """The section `measurement`."""
        try:
            return MeasurementSettings(**self._at("measurement"))
        except TypeError as error:
            raise self._damaged("measurement") from error

    def tolerances(self, config: ServingConfig) -> dict[str, AccuracyLimits]:
        """Return the accuracy limits by model; those of steps are their pipeline's."""
        return {
            model.name: self.tolerance(target.name)
            for target in config.targets
            for model in config.part(target.name).models
        }

    def tolerance(self, model: str) -> AccuracyLimits:
        """Return the accuracy limits of a model, without the task's metric."""
        limits = self._at("models", model, "accuracy")
        try:
            return AccuracyLimits(
                limits["min_argmax_agreement"], limits["min_cosine"], limits["max_abs_error"]
            )
        except KeyError as error:
            raise self._damaged(f"models.{model}.accuracy") from error

    def versions(self) -> Versions:
        """Return the versions that it was measured with; that of Triton comes from a server."""
        machine = self._study.machine
        host = read_host(self.server, Path())
        return Versions(
            server=self._at("server", "launcher"),
            image=host.image if isinstance(host, ContainerHost) else None,
            triton=None,
            driver=machine.driver,
            gpus=machine.gpus,
            cpu=machine.cpu,
            cores=machine.cores,
            memory_gib=machine.memory_gib,
            cpu_features=machine.cpu_features,
            python=machine.python,
            packages=dict(machine.packages),
        )

    def _at(self, *keys: str) -> Any:
        value: Any = self._study.content
        try:
            for key in keys:
                value = value[key]
        except (KeyError, TypeError) as error:
            raise self._damaged(".".join(keys)) from error
        return value

    def _damaged(self, key: str) -> StorageError:
        return DamagedStudyError(self._study.directory.space, f"no {key}")


def _with_examples(
    root: Path,
    manifest: Manifest,
    load: LoadDescription,
    where: BundleHost | None,
    consent: CodeConsent,
) -> Manifest:
    """Record the outputs of a few inputs, or note that none were recorded."""
    if where is None:
        return _without_examples(manifest)
    payloads = {stream.target: stream.payloads for stream in load.workload.streams}
    try:
        requests = {name: draw_requests(own) for name, own in payloads.items()}
    except ChangedRequestsError as error:
        return _without_examples(manifest, f" ({error})")
    consent.watch(StepStarted("serving it to record examples"))
    models = []
    with served_bundle(root, manifest.config, load.workload, where, consent) as bundle:
        triton = bundle.served.control.version()
        for model in manifest.models:
            if model.name not in requests:  # a step, whose ensemble is asked
                models.append(model)
                continue
            outputs = [output["name"] for output in model.config["output"]]
            answers = bundle.answers(model.name, requests[model.name], outputs)
            path = f"{model.name}/{EXAMPLES}"
            batched = payloads[model.name].as_served().batched
            write_examples(root / path, requests[model.name], answers, batched=batched)
            models.append(replace(model, examples=path))
    versions = replace(manifest.versions, triton=triton)
    return replace(manifest, models=tuple(models), versions=versions)


def _without_examples(manifest: Manifest, cause: str = "") -> Manifest:
    reason = f"{EXAMPLES}: no examples were recorded{cause}, so outputs cannot be verified"
    return replace(manifest, missing=(*manifest.missing, reason))
