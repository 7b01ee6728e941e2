"""Makes the image that the Docker tests run, where the engine does not have it: `python -m` this.

No registry of images is asked. The base is Debian's, by debootstrap; what lies on it is installed
by pip on this machine, with this machine's own settings, of which nothing gets into the image. Its
name holds a digest of what it is made of.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import docker
from docker.errors import APIError, ImageNotFound

_ROOT = Path(__file__).parents[2]
_DOCKERFILE = Path(__file__).with_name("Dockerfile")
_CONSTRAINTS = _ROOT / "constraints.txt"
_REPOSITORY = "triton-cost-optimizer-test"

_SUITE, _PYTHON = "bookworm", "3.11"
"""Debian 12, whose Python is the one that constraints.txt was resolved for."""

_PLATFORMS = (
    *("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_26", "manylinux_2_27"),
    *("manylinux_2_28", "manylinux_2_31", "manylinux_2_34", "manylinux_2_35"),
)
_NOT_IN_THE_IMAGE = ("./var/cache/apt", "./var/lib/apt", "./etc/apt", "./usr/share/doc")


def image_name() -> str:
    """The image of this content, whether it is there or not."""
    content = hashlib.sha256()
    for path in (Path(__file__), _DOCKERFILE, _CONSTRAINTS):
        content.update(path.read_bytes())
    return f"{_REPOSITORY}:{content.hexdigest()[:12]}"


def build() -> str:
    """Build the image where it is not there; returns its name. Exits with the reason it cannot."""
    client, name = docker.from_env(timeout=600), image_name()
    try:
        client.images.get(name)
        return name
    except ImageNotFound:
        pass
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("the image of the tests is made by debootstrap, as root (Debian: debootstrap)")
    base = name.replace(":", ":base-")
    with tempfile.TemporaryDirectory() as folder:
        archive = _debian(Path(folder))
        client.api.import_image_from_file(str(archive), *base.split(":"))
        archive.unlink()
        context = Path(folder, "context")
        _install(context / "site-packages")
        shutil.copy(_DOCKERFILE, context)
        client.images.build(
            path=str(context), tag=name, buildargs={"BASE": base}, network_mode="none", rm=True
        )
    _remove_all_but(client, {base, name})
    return name


def _remove_all_but(client: docker.DockerClient, kept: set[str]) -> None:
    """Remove what an earlier content made, unless something runs it."""
    for image in client.images.list(name=_REPOSITORY):
        for tag in {*image.tags} - kept:
            with suppress(APIError):
                client.images.remove(tag)


def _debian(folder: Path) -> Path:
    """A smallest Debian with Python, as an archive."""
    system, archive = folder / "debian", folder / "debian.tar"
    packages = f"python3,libpython{_PYTHON}"
    _run("debootstrap", "--variant=minbase", f"--include={packages}", _SUITE, system, *_mirror())
    left_out = [f"--exclude={path}/*" for path in _NOT_IN_THE_IMAGE]
    _run("tar", "--create", f"--directory={system}", f"--file={archive}", *left_out, ".")
    shutil.rmtree(system)
    return archive


def _mirror() -> list[str]:
    """Where this machine gets Debian's packages; empty for debootstrap's own choice."""
    asked = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    found = subprocess.run(
        [*asked, "Label: Debian", "Component: main"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()[:1]


def _install(folder: Path) -> None:
    """The server and the runtimes that need no compiler, for the image's Python."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wheels = ["--only-binary=:all:", "--implementation=cp", f"--python-version={_PYTHON}"]
    wheels += [f"--platform={name}_x86_64" for name in _PLATFORMS]
    into = [*wheels, "--no-compile", f"--target={folder}", f"--constraint={_CONSTRAINTS}"]
    _run(*pip, *into, "numpy", "onnxruntime", "openvino")
    # Only the server in it is wanted, not what its Python package needs.
    _run(*pip, *into, "--no-deps", "nvidia-pytriton")


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
