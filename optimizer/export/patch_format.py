"""The format `patch`: a patch of the model repository that a study began with, and its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.analysis.study_reading import StudyReading
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import UsageError, storage_errors
from optimizer.export.bundle.manifest import (
    PATCH,
    Bundle,
    model_digests,
    write_manifest,
)
from optimizer.export.bundle.study_bundle import ExportSource, PatchBase, measurement_values
from optimizer.export.rendering import render
from optimizer.export.repository_patch import PatchedFile, patch_text, sha256
from optimizer.files.untrusted import read_text
from optimizer.triton.config_text import edited

_CONFIG = "config.pbtxt"


def patch_base(study: StudyReading, config: ServingConfig, repository: Path | None) -> PatchBase:
    """Return what a patch of a study's configuration is for.

    Args:
        repository: the option --base.

    Raises:
        UsageError: where a model does not come from a repository, or is not in this one.
    """
    sources = {model.name: study.content["models"][model.name]["source"] for model in config.models}
    for name, source in sources.items():
        if source.get("repository") is None:
            raise UsageError(
                f"--format patch: models.{name}.source must be a model repository, which the patch"
                " would be for; --format repository exports any model"
            )
    if repository is None:
        raise UsageError("--format patch: needs --base, the model repository that the patch is for")
    folders = {name: str(source["model"]) for name, source in sources.items()}
    for folder in folders.values():
        if not (repository / folder).is_dir():
            raise UsageError(f"--base: {repository} has no model {folder}")
    return PatchBase(repository, folders)


def refuse_changed(source: ExportSource) -> None:
    """Check that the repository has the models that the study began with. Raises UsageError."""
    base = _base(source)
    for name, folder in base.folders.items():
        studied = source.artifacts[name].files.artifact
        then, now = _files_of(studied.parent, studied.name), _files_of(base.repository, folder)
        if _completed(base.repository / folder, studied):
            now[_CONFIG] = then[_CONFIG]
        changed = [path for path in sorted({*then, *now}) if then.get(path) != now.get(path)]
        if changed:
            digests = [files.get(changed[0], "no file") for files in (then, now)]
            raise UsageError(
                f"--base: {base.repository / folder} has changed since the study: "
                f"{', '.join(changed)} (sha256 of the first {digests[0]}, now {digests[1]}); "
                "restore what was measured, or run a study of the model as it is now"
            )


def _completed(folder: Path, studied: Path) -> bool:
    """Return whether a model's config.pbtxt, completed as the study's is, has the same text."""
    text = read_text(studied / _CONFIG)
    try:
        return edited(_config_text(folder) or "", text_format.Parse(text, ModelConfig())) == text
    except ValueError:
        return False


def _config_text(folder: Path) -> str | None:
    """Return the text of a model's config.pbtxt, None where it has none."""
    path = folder / _CONFIG
    return read_text(path) if path.exists() else None


def _base(source: ExportSource) -> PatchBase:
    assert source.base is not None, "the format was requested with its base"
    return source.base


def _files_of(root: Path, folder: str) -> dict[str, str]:
    """Return the digests of a model's files, by path in its folder."""
    digests = model_digests(root, [folder])
    return {path.removeprefix(f"{folder}/"): digest for path, digest in digests.items()}


def as_patch(bundle: Bundle, source: ExportSource, target: Path) -> None:
    """Write the format into an empty folder.

    Raises:
        UsageError: where no file changes.
        StorageError: when it cannot be written.
    """
    base = _base(source)
    files = [
        _patched(model.name, folder, bundle, source)
        for model in bundle.manifest.models
        for folder in (base.folders[model.name],)
    ]
    models = tuple(replace(each, folder=base.folders[each.name]) for each in bundle.manifest.models)
    in_base = replace(bundle, manifest=replace(bundle.manifest, models=models))
    write_patch(in_base, base.repository, files, target)


def _patched(name: str, folder: str, bundle: Bundle, source: ExportSource) -> PatchedFile:
    before = _config_text(_base(source).repository / folder)
    deployed = read_text(source.artifacts[name].files.artifact / _CONFIG)
    config = text_format.Parse(read_text(bundle.root / name / _CONFIG), ModelConfig())
    config.name = text_format.Parse(before or "", ModelConfig()).name
    after = edited(before or "", config)
    completed = deployed if deployed != before else None
    return PatchedFile(PurePosixPath(folder, _CONFIG), before, after, completed)


def write_patch(
    bundle: Bundle, repository: Path, files: Sequence[PatchedFile], target: Path
) -> Bundle:
    """Write the patch into an empty folder, and move the recorded examples there.

    Args:
        bundle: the configuration, with its models.
        repository: that the patch is for, unchanged since the study began.
        files: the config.pbtxt of each model, with its text in `repository`.

    Raises:
        UsageError: where no file changes.
        StorageError: when it cannot be written.
    """
    changed = [file for file in files if file.before != file.after]
    if not changed:
        raise UsageError(
            f"trial {bundle.manifest.trial} is the configuration as deployed, so there is nothing"
            " to patch: --trial exports another one"
        )
    folders = [model.source_folder for model in bundle.manifest.models]
    patched = model_digests(repository, folders)
    patched |= {str(file.path): sha256(file.after) for file in changed}
    values = {**measurement_values(bundle.manifest), "files": changed, "patch": PATCH}
    with storage_errors(target):
        for model in bundle.manifest.models:
            if model.examples is not None:
                (target / model.name).mkdir()
                (bundle.root / model.examples).rename(target / model.examples)
        (target / PATCH).write_bytes(patch_text(bundle.manifest, changed).encode())
        (target / "README.md").write_text(render("patch/README.md.jinja", values))
        return write_manifest(target, replace(bundle.manifest, patched=patched), bundle.load)
