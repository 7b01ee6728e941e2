"""The deployment of a study's configuration on a platform, and its server image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimizer.analysis.study_reading import StudyReading
from optimizer.configuration.hosting import ContainerHost, EmbeddedHost, Host, RemoteHost
from optimizer.configuration.releases import RELEASES, triton_image
from optimizer.errors import UsageError
from optimizer.export.bundle.manifest import Bundle
from optimizer.export.bundle.study_bundle import ExportSource
from optimizer.export.deployment import (
    Deployment,
    ServerImage,
    container_image,
    deployment_of,
    embedded_image,
)
from optimizer.export.platforms.formats import PLATFORMS
from optimizer.machine.fingerprint import Machine
from optimizer.space_file.reader import read_host
from optimizer.study.decision import ConfirmedCapacity
from optimizer.triton.embedded import SERVER_PACKAGE


def refuse_unfit(platform: str, study: StudyReading, finding: ConfirmedCapacity) -> None:
    """Check that a platform can host a configuration. Raises UsageError."""
    if platform in PLATFORMS:
        host = read_host(study.content["server"], Path())
        if isinstance(host, EmbeddedHost) and study.machine.gpus:
            raise UsageError(
                f"{platform}: no image is made for the embedded server on GPUs; search with "
                "server.launcher docker, or export the format bundle"
            )
        targets = {stream.target for stream in study.searched.workload.streams}
        names = [m.name for m in finding.candidate.config.models if m.name in targets]
        PLATFORMS[platform].check(names, study.searched.price.instance_type)


def write_platform(platform: str, bundle: Bundle, winner: ExportSource, target: Path) -> None:
    """Write the format of a platform into an empty folder, and move the bundle there.

    Raises:
        UsageError: where the platform cannot host it.
        StorageError: when it cannot be written.
    """
    PLATFORMS[platform].write(_deployment(bundle, winner), bundle.root, target)


def _deployment(bundle: Bundle, winner: ExportSource) -> Deployment:
    searched, finding = winner.study.searched, winner.finding
    host = read_host(winner.study.content["server"], Path())
    deployment = deployment_of(
        winner.study.name,
        finding.candidate,
        searched.workload,
        searched.demand,
        searched.price,
        _image(bundle, host),
        load_seconds=winner.study.setup_seconds(finding) or None,
    )
    return replace(deployment, measured_on=served_by(host, winner.study.machine))


def served_by(host: Host, machine: Machine) -> str | None:
    """Return the hardware of the server; None for a remote server, whose hardware is unknown."""
    return None if isinstance(host, RemoteHost) else machine.hardware


def _image(bundle: Bundle, host: Host) -> ServerImage:
    """Return the image of the study, or that of an NVIDIA release with the same Triton."""
    versions = bundle.manifest.versions
    needed = [package for model in bundle.manifest.models for package in model.packages]
    packages = list(dict.fromkeys(needed))
    if isinstance(host, EmbeddedHost):
        python = ".".join(versions.python.split(".")[:2])
        return embedded_image(packages, SERVER_PACKAGE, python)
    if isinstance(host, ContainerHost):
        return container_image(host.image, packages, host.shared_memory_bytes)
    same = [release for release in RELEASES if release.triton == versions.triton]
    if not same:
        raise UsageError(
            f"the study was measured on a remote server, Triton {versions.triton or 'unknown'}, and"
            " no image with that version is known: export the format repository into an image"
        )
    return container_image(triton_image(same[0].tag), packages)
