"""Installed software: Python packages, the embedded server, perf_analyzer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from optimizer.commands.doctor.checks import CheckResult, NotChecked
from optimizer.commands.doctor.docker import Docker
from optimizer.commands.packages import EXPORT_PACKAGES, GRAPH_PACKAGES, PACKAGES_FOR
from optimizer.configuration.releases import DEFAULT_TAG, content_of, same_version, triton_image
from optimizer.configuration.runtimes import RUNTIME_PACKAGE
from optimizer.load import perf_analyzer
from optimizer.triton.embedded import EmbeddedRuntime

Packages = Mapping[str, str]
"""Version of every installed package, by name."""

_SERVER = "embedded server"
_PACKAGES = sorted({*GRAPH_PACKAGES, *EXPORT_PACKAGES, *RUNTIME_PACKAGE.values()})
_SERVER_PACKAGE = "nvidia-pytriton"
_TENSORRT = "tensorrt"


def packages() -> Packages:
    """Return the installed packages that make and serve models."""
    versions = {name: _installed(name) for name in (*_PACKAGES, _SERVER_PACKAGE, _TENSORRT)}
    return {name: number for name, number in versions.items() if number is not None}


def second_opinion() -> CheckResult:
    """Find perf_analyzer, which no search needs."""
    binary = shutil.which(perf_analyzer.NAME)
    if binary is None:
        why = "not on PATH; only measure --with needs it"
        return CheckResult(perf_analyzer.NAME, "missing", why, perf_analyzer.INSTALL_HINT)
    return CheckResult(perf_analyzer.NAME, "ok", binary)


def results(
    installed: Packages | NotChecked,
    embedded: EmbeddedRuntime | NotChecked,
    docker: Docker | NotChecked,
    *,
    with_gpus: bool,
) -> tuple[CheckResult, ...]:
    """Return the results of the embedded server and of every package."""
    if isinstance(installed, NotChecked):
        return (_embedded(embedded, {}), installed.result("packages"))
    return (
        _embedded(embedded, installed),
        *(_package(name, installed, with_gpus=with_gpus) for name in _PACKAGES),
        _local_tensorrt(installed, docker, with_gpus=with_gpus),
    )


def servers_with(tensorrt: str, docker: Docker | NotChecked) -> list[str]:
    """Return the images of servers that load engines of this TensorRT version."""
    servers = () if isinstance(docker, NotChecked) else docker.servers
    return [
        image.name
        for image in servers
        if image.content.tensorrt and same_version(tensorrt, image.content.tensorrt)
    ]


def _embedded(embedded: EmbeddedRuntime | NotChecked, installed: Packages) -> CheckResult:
    if isinstance(embedded, NotChecked):
        return embedded.result(_SERVER)
    detail = f"tritonserver of {_SERVER_PACKAGE} {installed.get(_SERVER_PACKAGE, '')}".rstrip()
    return CheckResult(_SERVER, "ok", detail)


def _package(name: str, installed: Packages, *, with_gpus: bool) -> CheckResult:
    if name in installed:
        return CheckResult(name, "ok", installed[name])
    makes_files = name in GRAPH_PACKAGES | EXPORT_PACKAGES
    remedy = f"pip install '{PACKAGES_FOR[with_gpus and makes_files]}'"
    return CheckResult(name, "missing", "not installed", remedy)


def _local_tensorrt(
    installed: Packages, docker: Docker | NotChecked, *, with_gpus: bool
) -> CheckResult:
    wanted = _wanted_tensorrt(docker)
    remedy = f"pip install 'triton-cost-optimizer[tensorrt]' {_TENSORRT}=={wanted}"
    own = installed.get(_TENSORRT)
    if own is None:
        detail = "not installed; engines.build_in: local needs it"
        return CheckResult(_TENSORRT, "missing", detail, remedy if with_gpus else None)
    if servers := servers_with(own, docker):
        return CheckResult(_TENSORRT, "ok", f"{own}, that of {', '.join(servers)}")
    if same_version(own, wanted):
        return CheckResult(_TENSORRT, "ok", f"{own}, that of release {DEFAULT_TAG}")
    detail = f"{own}, but the server's is {wanted}: it would not load engines built here"
    return CheckResult(_TENSORRT, "missing", detail, remedy if with_gpus else None)


def _wanted_tensorrt(docker: Docker | NotChecked) -> str:
    """Return the version of the default image, or else of a local one."""
    default = content_of(triton_image(), {}).tensorrt
    servers = () if isinstance(docker, NotChecked) else docker.servers
    versions = {image.name: image.content.tensorrt for image in servers if image.content.tensorrt}
    wanted = versions.get(triton_image()) or next(iter(versions.values()), default)
    assert wanted is not None, "the default release is listed"
    return wanted


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
