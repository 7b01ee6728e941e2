"""The tritonserver of the nvidia-pytriton package: no container, no root, only the Python backend.

System libraries that pip cannot install are checked before the server starts.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import RequirementError, storage_errors

SERVER_PACKAGE = "nvidia-pytriton==0.7.0"
"""Requirement of the package with the server, whose file layout this module relies on."""

SERVER_VERSION = "2.51.0"
"""Version of its Triton."""

_INSTALL = "pip install 'triton-cost-optimizer[embedded]'"
_STUB = "triton_python_backend_stub"
_LEAST_GLIBC = (2, 35)
"""That of the package's wheel."""


@dataclass(frozen=True)
class EmbeddedRuntime:
    """A tritonserver that this machine can start.

    Attributes:
        backend_files: library, stub and Python module of the Python backend.
        environment: variables that the server's Python models need.
    """

    binary: Path
    backend_files: tuple[Path, ...]
    environment: tuple[tuple[str, str], ...]

    @property
    def cache_flag(self) -> str:
        """The argument that tells the server where the libraries of response caches are."""
        return f"--cache-directory={self.binary.parent.parent / 'caches'}"

    def environment_with(self, gpu_uuids: Sequence[str]) -> dict[str, str]:
        """Return the variables of a server that sees these GPUs and no others, in this order."""
        return {**dict(self.environment), "CUDA_VISIBLE_DEVICES": ",".join(gpu_uuids)}

    def lay_out(self, directory: Path) -> Path:
        """Create a directory for --backend-directory and return it.

        Triton expects the stub beside the backend's library, and the package keeps them in two
        folders, so the directory holds links to both. Raises StorageError.
        """
        backend = directory / "python"
        with storage_errors(backend):
            shutil.rmtree(directory, ignore_errors=True)
            backend.mkdir(parents=True)
            for file in self.backend_files:
                (backend / file.name).symlink_to(file)
        return directory


def find_embedded_runtime() -> EmbeddedRuntime:
    """Find the server and check that the processes of its Python models can start.

    Raises:
        RequirementError: when the package, its stub for this Python, or libpython is missing.
    """
    package = _package_folder()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        available = ", ".join(sorted(p.name for p in stub.parent.parent.iterdir()))
        raise RequirementError(
            f"the embedded Triton has no Python backend for Python {version}",
            f"run with one of {available}",
        )
    environment = _environment()
    _check_stub(stub, version, environment)
    library = package / "backends" / "python"
    return EmbeddedRuntime(
        binary=package / "bin" / "tritonserver",
        backend_files=(stub, *sorted(f for f in library.iterdir() if f.is_file())),
        environment=tuple(environment.items()),
    )


def _package_folder() -> Path:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise RequirementError(
            f"the embedded Triton runs on Linux x86-64, this is {sys.platform} {os.uname().machine}"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        _check_glibc()
        raise RequirementError("the embedded Triton is not installed", _INSTALL)
    return Path(spec.origin).parent / "tritonserver"


def _check_glibc() -> None:
    """Raise RequirementError where pip cannot install the package."""
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(map(int, version.split(".")[:2])) < _LEAST_GLIBC:
        raise RequirementError(
            f"the embedded Triton needs glibc {'.'.join(map(str, _LEAST_GLIBC))}, this machine has "
            f"{version}",
            "serve in a container (server.launcher docker), which needs the extra gpu only: "
            "pip install 'triton-cost-optimizer[gpu]'",
        )


def _environment() -> dict[str, str]:
    """Return the variables by which the stub finds site-packages (PATH) and libpython.

    The interpreter's own libpython comes before the one that `scripts/find-libpython` may have put
    into the lib folder of the virtual environment.
    """
    bin_folder = Path(sys.executable).parent
    folders = [
        *(sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"),
        *(f"{bin_folder.parent}/lib", os.environ.get("LD_LIBRARY_PATH")),
    ]
    libraries = dict.fromkeys(folders)
    return {
        "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
    }


def _check_stub(stub: Path, version: str, environment: dict[str, str]) -> None:
    """Run the stub without arguments: it prints its usage, unless a shared library is missing."""
    done = subprocess.run(
        [stub],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    missing = re.search(r"(\S+): cannot open shared object file", done.stdout + done.stderr)
    if missing is None:
        return
    library = missing[1]
    remedy = (
        f"apt-get install libpython{version} (as root), or use an interpreter that has its own"
        if library.startswith("libpython")
        else f"install the package that contains {library}"
    )
    raise RequirementError(f"Triton's Python backend needs {library}", remedy)
