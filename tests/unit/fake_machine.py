"""A fake machine for doctor: hardware, engine, packages and programs as a test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import docker
import psutil
import pytest
from docker.errors import DockerException

from optimizer.commands import doctor
from optimizer.commands.doctor import gpus as graphics
from optimizer.commands.doctor import machine, software
from optimizer.errors import RequirementError
from optimizer.machine import cores
from optimizer.machine.fingerprint import Machine
from optimizer.triton.embedded import EmbeddedRuntime
from tests.unit import fake_nvml
from tests.unit.fake_docker import FakeDocker

GIB = 2**30
CACHE = Path("/home/me/.cache/triton-cost-optimizer")
RESULTS = Path("/home/me/models/results")

PACKAGES = {
    "nvidia-pytriton": "0.7.0",
    "onnx": "1.23.2",
    "onnxruntime": "1.32.0",
    "onnxscript": "0.7.2",
    "openvino": "2026.4.1",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
NOT_RUNNING = FileNotFoundError(2, "No such file or directory")
NO_PERMISSION = PermissionError(13, "Permission denied")


@dataclass
class FakeMachine:
    """A machine; as it is made it has no GPU and no Docker, and all else.

    Attributes:
        cards: by UUID; None where no driver answers.
        on_bus: NVIDIA's cards on the PCI bus.
        engine: Docker's, or why its SDK reaches none.
        embedded: why the embedded server cannot run, None where it can.
        programs: on PATH.
        writable: whether its folders may be written.
        cpu_flags: of an x86 processor; None for another one.
    """

    cards: dict[str, fake_nvml.Card] | None = None
    driver: str = "580.82.07"
    on_bus: int = 0
    engine: FakeDocker | OSError = NOT_RUNNING
    packages: Mapping[str, str] = field(default_factory=lambda: PACKAGES)
    embedded: RequirementError | None = None
    programs: tuple[str, ...] = ()
    shared_gib: tuple[float, float] = (8.0, 8.0)
    disk_free_gib: float = 120.0
    writable: bool = True
    cpu_flags: set[str] | None = field(default_factory=lambda: {"avx2"})

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Be the machine that doctor looks at; `folder` is for the fake PCI bus."""
        if self.cards is None:
            fake_nvml.install_none(monkeypatch)
        else:
            fake_nvml.install(monkeypatch, self.cards, self.driver)
        monkeypatch.setattr(graphics, "_PCI_DEVICES", self._bus(folder))
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        monkeypatch.setattr(docker, "from_env", self._docker)
        monkeypatch.setattr(doctor, "find_embedded_runtime", self._embedded)
        monkeypatch.setattr(software, "version", self._version)
        monkeypatch.setattr("shutil.which", self._which)
        self._hardware(monkeypatch)

    def _hardware(self, monkeypatch: pytest.MonkeyPatch) -> None:
        processor = Machine(
            "AMD EPYC 7R32", 8, 31, ("avx2",), (), "3.11.9", "Linux x86_64", "embedded"
        )
        memory = SimpleNamespace(total=31 * GIB, available=28 * GIB)
        monkeypatch.setattr(machine, "this_machine", lambda _: processor)
        monkeypatch.setattr(machine, "cpu_flags", lambda: self.cpu_flags)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        for limit in ("memory_limit_bytes", "free_memory_bytes"):
            monkeypatch.setattr(cores, limit, lambda: None)
        monkeypatch.setattr("shutil.disk_usage", self._disk_usage)
        monkeypatch.setattr("os.access", lambda *_: self.writable)

    def _bus(self, folder: Path) -> Path:
        vendors = ["0x8086", *["0x10de"] * self.on_bus]
        for number, vendor in enumerate(vendors):
            device = folder / f"0000:00:{number:02}.0"
            device.mkdir(parents=True)
            (device / "vendor").write_text(f"{vendor}\n")
            (device / "class").write_text("0x030200\n")
        return folder

    def _docker(self, **_: object) -> FakeDocker:
        if isinstance(self.engine, OSError):
            aborted = ConnectionError("Connection aborted.", self.engine)
            raise DockerException(
                f"Error while fetching server API version: {aborted}"
            ) from aborted
        return self.engine

    def _embedded(self) -> EmbeddedRuntime:
        if self.embedded is not None:
            raise self.embedded
        return EmbeddedRuntime(Path("/tritonserver"), (), ())

    def _version(self, package: str) -> str:
        if package not in self.packages:
            raise PackageNotFoundError(package)
        return self.packages[package]

    def _which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def _disk_usage(self, path: str | Path) -> SimpleNamespace:
        if str(path) == machine.SHARED_MEMORY:
            total, free = self.shared_gib
        else:
            total, free = 200.0, self.disk_free_gib
        return SimpleNamespace(total=int(total * GIB), free=int(free * GIB))
