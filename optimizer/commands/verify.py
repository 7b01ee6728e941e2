"""Verify a bundle: its files, then in a clean server its configuration, outputs and capacity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.commands.bundle_serving import (
    BundleHost,
    ServedBundle,
    ServerSettings,
    bundle_host,
    measured_on,
    served_bundle,
)
from optimizer.commands.code_consent import CodeConsent
from optimizer.commands.protocols import protocol_of
from optimizer.commands.run_context import artifact_cache
from optimizer.configuration.hosting import EmbeddedHost
from optimizer.errors import (
    ChangedRequestsError,
    EngineMismatch,
    LoadTestFailure,
    TrialFailure,
    UsageError,
    VoidLevelFailure,
)
from optimizer.export.bundle.checks import (
    Check,
    Outcome,
    Verification,
    capacity_departure,
    check_capacity,
    check_configuration,
    check_files,
    check_limit,
    check_outputs,
    examples_of,
    how_to_rebuild,
    rebuilt_engines,
    unchecked,
)
from optimizer.export.bundle.manifest import Bundle, Manifest, read_bundle
from optimizer.files.atomic import write_json
from optimizer.load.capacity import CapacitySearch, RunLevel, find_capacity
from optimizer.load.client import LoadClient
from optimizer.load.levels import refuse_void
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.search.level_runner import LevelRunner, concurrency
from optimizer.study.events import Note, StepStarted, Watcher

_REQUESTS = 500
"""Measured at the recommended load, at least."""

_TRIES = 2
"""Measurements where limit or capacity seem to be missed: a shared machine varies."""


@dataclass(frozen=True)
class VerifyOptions:
    """Options of `verify`.

    Attributes:
        bundle: folder of an exported bundle, or of an exported patch.
        allow_code: whether code of the bundle runs that was not made here.
        patched: model repository with the patch applied; goes with a patch only.
        server: that serves it; where nothing is given, that of its measurements.
        within: share by which the capacity may differ.
        seed: of the arrivals.
        json: file that the outcome is also written to, outside of the bundle.

    Raises:
        UsageError: where `json` is inside the bundle or the repository.
    """

    bundle: Path
    server: ServerSettings
    within: float = 0.1
    seed: int = 0
    json: Path | None = None
    allow_code: bool = False
    patched: Path | None = None

    def __post_init__(self) -> None:
        """Check that writing the outcome leaves the bundle as it is."""
        for folder in filter(None, (self.bundle, self.patched)):
            if self.json is not None and self.json.resolve().is_relative_to(folder.resolve()):
                raise UsageError(f"--json: must lie outside of {folder}, got {self.json}")


def verify_bundle(options: VerifyOptions, watch: Watcher) -> Verification:
    """Make every check that can be made; where one fails, those that depend on it are left out.

    Raises:
        UsageError: where there is no bundle.
        RequirementError: the machine, the image or the server lacks something.
        StorageError: where the outcome cannot be written.
    """
    verification = _verified(options, watch)
    if options.json is not None:
        write_json(options.json, _to_json(verification))
    return verification


def _verified(options: VerifyOptions, watch: Watcher) -> Verification:
    bundle = _bundle(options)
    watch(StepStarted("comparing every file"))
    files = check_files(bundle)
    if files.outcome == "fail":
        reason = "the files are not those that were exported"
        rest = unchecked(reason, "configuration", "outputs", "limit", "capacity")
        return Verification((files, *rest))
    settings = options.server or measured_on(bundle.manifest)
    host = bundle_host(settings, bundle.manifest.config)
    return _Serving(options, bundle, host, watch).verified(files)


def _bundle(options: VerifyOptions) -> Bundle:
    """Read the bundle, and join it with the repository that its patch was applied to."""
    bundle = read_bundle(options.bundle)
    if bundle.manifest.patched and options.patched is None:
        raise UsageError(
            f"{bundle.root} contains a patch and no models: apply it to a copy of the model"
            " repository, and name that with --patched"
        )
    if options.patched is not None and not bundle.manifest.patched:
        raise UsageError(f"--patched: {bundle.root} contains the models themselves, not a patch")
    if options.patched is not None and not options.patched.is_dir():
        raise UsageError(f"--patched: {options.patched} is no folder")
    return replace(bundle, repository=options.patched)


@dataclass(frozen=True)
class _Serving:
    """The checks that need a server."""

    options: VerifyOptions
    bundle: Bundle
    where: BundleHost
    watch: Watcher

    def verified(self, files: Check) -> Verification:
        manifest, workload = self.bundle.manifest, self.bundle.load.workload
        notes = [*rebuilt_engines(manifest), *_other_packages(manifest, self.where)]
        self.watch(StepStarted("loading it in a clean server"))
        try:
            root, folders = self.bundle.models, self.bundle.folders
            with served_bundle(
                root, manifest.config, workload, self.where, self._consent, folders=folders
            ) as served:
                notes += _other_versions(manifest, served, self.where)
                return self._checked(files, served, tuple(notes))
        except TrialFailure as error:
            text = str(error)
            if isinstance(error, EngineMismatch) and (hint := how_to_rebuild(manifest)):
                text = f"{text}; {hint}"
            outcome: Outcome = "not measured" if error.transient else "fail"
            failed = Check("configuration", outcome, f"it cannot be served here: {text}")
            rest = unchecked("it cannot be served", "outputs", "limit", "capacity")
            return Verification((files, failed, *rest), tuple(notes))

    @property
    def _consent(self) -> CodeConsent:
        """The code that may run: that of a patched repository is the user's own."""
        allowed = self.options.allow_code or self.bundle.repository is not None
        return CodeConsent(artifact_cache(None), allowed, self.watch)

    def _checked(self, files: Check, served: ServedBundle, notes: tuple[str, ...]) -> Verification:
        manifest, control = self.bundle.manifest, served.served.control
        running = {model.name: control.config(model.name) for model in manifest.models}
        configuration = check_configuration(manifest, running)
        self.watch(StepStarted("comparing its outputs"))
        outputs = self._outputs(served)
        checks = (files, configuration, outputs)
        if "fail" in {check.outcome for check in checks}:
            rest = unchecked("it is not what was measured", "limit", "capacity")
            return Verification((*checks, *rest), notes)
        try:
            return self._loaded(checks, served, notes)
        except ChangedRequestsError as error:
            unmeasured = Check("limit", "not measured", str(error))
            rest = unchecked("there are no requests to send", "capacity")
            return Verification((*checks, unmeasured, *rest), notes)
        except TrialFailure as error:
            failure = served.session.failure(error)
            outcome: Outcome = "not measured" if failure.transient else "fail"
            failed = Check("limit", outcome, str(failure))
            return Verification(
                (*checks, failed, *unchecked("it failed under load", "capacity")), notes
            )

    def _outputs(self, served: ServedBundle) -> Check:
        examples = examples_of(self.bundle)
        try:
            answers = {
                name: served.answers(name, each.requests, list(each.outputs))
                for name, each in examples.items()
            }
        except LoadTestFailure as error:
            return Check("outputs", "fail", str(error))
        return check_outputs(self.bundle.manifest, examples, answers)

    def _loaded(
        self, checks: tuple[Check, ...], served: ServedBundle, notes: tuple[str, ...]
    ) -> Verification:
        manifest, load = self.bundle.manifest, self.bundle.load
        rng = np.random.default_rng(self.options.seed)
        with LoadClient(self.where.slot.client_cores) as client:
            levels = LevelRunner(client, load.workload, self.where.slot, rng, self.watch)
            with levels.on(served.served, manifest.config) as run:
                level = self._at_recommended_load(run)
                limit = check_limit(manifest, level)
                if limit.outcome == "fail":
                    notes = (*notes, *level.warnings)
                    rest = unchecked("the limit is missed at a lower load", "capacity")
                    return Verification((*checks, limit, *rest), notes, level)
                try:
                    measurements = list(self._capacities(run))
                except VoidLevelFailure as error:
                    void = Check("capacity", "not measured", str(error))
                    return Verification((*checks, limit, void), notes, level)
        capacity = check_capacity(manifest, measurements, self.options.within)
        levels_run = [level, *(each for one in measurements for each in one.levels)]
        warnings = dict.fromkeys(text for each in levels_run for text in each.warnings)
        notes = (*notes, *warnings, *_unsteady(level, measurements[-1]))
        return Verification((*checks, limit, capacity), notes, level, measurements[-1])

    def _at_recommended_load(self, run: RunLevel) -> LoadLevel:
        workload = self.bundle.load.workload
        per_second = self.bundle.manifest.recommended.per_replica_per_second
        protocol = protocol_of(self.bundle.load.measurement, workload)
        search = CapacitySearch(run, workload, protocol)
        seconds = protocol.level_seconds(_REQUESTS, per_second)
        for _ in range(_TRIES):
            if search.meets_limits(per_second / workload.demand_per_second, seconds, seconds):
                break
        refuse_void(search.levels[-1])
        return search.levels[-1]

    def _capacities(self, run: RunLevel) -> Iterator[Measurement]:
        """Yield measurements until one is close to the recorded one, or there are enough."""
        workload, manifest = self.bundle.load.workload, self.bundle.manifest
        protocol = protocol_of(self.bundle.load.measurement, workload)
        for _ in range(_TRIES):
            result = find_capacity(run, workload, protocol, concurrency(manifest.config))
            yield (measurement := result.valid_measurement)
            departure = capacity_departure(manifest, measurement, self.options.within)
            if departure is None:
                return
            self.watch(Note(f"the capacity differs by {departure:+.0%}"))


def _unsteady(level: LoadLevel, measurement: Measurement) -> Iterator[str]:
    """Yield a note where the two measurements of one server contradict each other."""
    if measurement.capacity_per_second < level.achieved_per_second:
        yield (
            f"{level.achieved_per_second:,.0f}/s were served within the limit, and then"
            f" {measurement.capacity_per_second:,.0f}/s at most: the machine's speed changed,"
            " verify again"
        )


def _other_versions(manifest: Manifest, served: ServedBundle, where: BundleHost) -> list[str]:
    measured = manifest.versions
    here = served.served.control.version()
    notes = []
    if measured.triton is not None and here != measured.triton:
        notes.append(f"Triton {here} serves here, {measured.triton} when it was measured")
    gpus = tuple(gpu.name for gpu in where.gpus)
    if gpus != measured.gpus[: len(gpus)]:
        notes.append(f"GPUs here: {', '.join(gpus)}; measured on {', '.join(measured.gpus)}")
    return notes


def _other_packages(manifest: Manifest, where: BundleHost) -> Iterator[str]:
    """Yield packages of other versions, where the embedded server uses this program's."""
    if not isinstance(where.host, EmbeddedHost):
        return
    for wanted in dict.fromkeys(each for model in manifest.models for each in model.packages):
        name, _, pinned = wanted.partition("==")
        try:
            here = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
        if pinned and here != pinned:
            yield f"{name} {here} is installed here, {pinned} when it was measured"


def _to_json(verification: Verification) -> Mapping[str, Any]:
    capacity = verification.capacity
    return {
        "outcome": verification.outcome,
        "checks": [asdict(check) for check in verification.checks],
        "notes": list(verification.notes),
        "level": asdict(verification.level) if verification.level is not None else None,
        "capacity_per_second": capacity.capacity_per_second if capacity is not None else None,
    }
