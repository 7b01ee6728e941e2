"""The format `patch`: a patch of the model repository that a study began with, and its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optimizer.errors import UsageError, storage_errors
from optimizer.export.bundle.manifest import PATCH, Bundle, model_digests, write_manifest
from optimizer.export.bundle.study_bundle import measurement_values
from optimizer.export.rendering import render
from optimizer.export.repository_patch import PatchedFile, patch_text, sha256


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
    names = [model.name for model in bundle.manifest.models]
    patched = model_digests(repository, names)
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
