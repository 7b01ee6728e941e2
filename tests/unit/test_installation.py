"""What `make` does before the program starts: virtual environment, libpython, packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from optimizer.errors import RequirementError
from optimizer.triton.embedded import find_embedded_runtime

ROOT = Path(__file__).parents[2]
PINNED = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the project's scripts and nothing else."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def run(checkout: Path, *command: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / command[0], *command[1:]],
        env={**os.environ, **({} if path is None else {"PATH": path})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def python_that_says(checkout: Path, script: str) -> None:
    """Put a fake interpreter into the checkout's virtual environment: a shell script."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def programs(folder: Path, **scripts: str) -> str:
    """Return a PATH with the system's basic programs, fake ones by name, and no others."""
    folder.mkdir()
    for name in (
        "bash",
        "cat",
        "cp",
        "dirname",
        "env",
        "find",
        "mktemp",
        "rm",
        "sed",
        "tail",
        "tee",
    ):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("oldest", ["3.11.0", "3.12.0"])
def test_every_pinned_package_accepts_the_first_release_of_each_python(oldest: str) -> None:
    requirements = {}
    for name in PINNED:
        try:
            required = importlib.metadata.distribution(name).metadata["Requires-Python"]
        except importlib.metadata.PackageNotFoundError:  # of another extra
            continue
        requirements[name] = SpecifierSet(required or "")

    assert len(requirements) > 100
    assert {name for name, allowed in requirements.items() if not allowed.contains(oldest)} == set()


def test_a_gpu_host_installs_no_package_that_needs_a_newer_glibc() -> None:
    """nvidia-pytriton's wheel needs glibc 2.35; Amazon Linux 2023 and RHEL 9 have 2.34."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert not [each for each in extras["gpu"] if "pytriton" in each]
    # Everything that makes model files, as on a CPU, and the SDK of Docker.
    made_with = {*extras["embedded"]} - {"openvino>=2025.0"}
    assert {each for each in made_with if "pytriton" not in each} | {*extras["docker"]} == {
        *extras["gpu"]
    }


def test_an_old_glibc_is_named_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.34"))
    with pytest.raises(
        RequirementError, match=r"needs glibc 2\.35, this machine has 2\.34: .*optimizer\[gpu\]"
    ):
        find_embedded_runtime()
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.35"))
    with pytest.raises(RequirementError, match=r"not installed: pip install .*\[embedded\]"):
        find_embedded_runtime()


def test_an_environment_that_works_is_kept_with_what_is_installed_in_it(
    checkout: Path, tmp_path: Path
) -> None:
    python_that_says(checkout, "exit 0")
    installed = checkout / ".venv" / "lib" / "torch-cpu"
    installed.parent.mkdir()
    installed.touch()

    done = run(checkout, "create-venv", path=programs(tmp_path / "bin", python3="exit 9"))

    assert done.returncode == 0, done.stderr
    assert installed.exists()


def test_an_environment_that_starts_nothing_is_made_anew(checkout: Path, tmp_path: Path) -> None:
    python_that_says(checkout, "exit 1")
    path = programs(tmp_path / "bin", **{"python3.11": 'echo "$@" >>called'})

    done = run(checkout, "create-venv", path=path)

    assert done.returncode == 0, done.stderr
    assert (checkout / "called").read_text().splitlines()[-1] == "-m venv --clear .venv"


def test_a_machine_without_a_supported_python_is_told_what_to_install(
    checkout: Path, tmp_path: Path
) -> None:
    path = programs(tmp_path / "bin", python3="exit 1")

    done = run(checkout, "create-venv", path=path)

    assert done.returncode == 3
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_missing_libpython_is_named_with_its_command_before_anything_is_installed(
    checkout: Path, tmp_path: Path
) -> None:
    python_that_says(checkout, '[ "$1" = -c ] && echo 3.11 || exit 1')

    done = run(checkout, "find-libpython", path=programs(tmp_path / "bin"))

    assert done.returncode == 3
    assert "needs libpython3.11.so.1.0" in done.stderr
    assert "apt-get install libpython3.11" in done.stderr


def test_what_the_package_archive_answers_is_told(checkout: Path, tmp_path: Path) -> None:
    python_that_says(checkout, '[ "$1" = -c ] && echo 3.11 || exit 1')
    archive = 'echo "E: Unable to locate package libpython3.11" >&2; exit 100'
    path = programs(tmp_path / "bin", **{"apt-get": archive, "dpkg-deb": "", "dpkg-query": ""})

    done = run(checkout, "find-libpython", path=path)

    assert done.returncode == 3
    assert "Unable to locate package libpython3.11" in done.stderr


def test_the_end_of_pips_output_is_shown_when_it_fails(checkout: Path) -> None:
    python_that_says(
        checkout, "echo Collecting numpy; echo ERROR: No matching distribution; exit 1"
    )

    done = run(checkout, "install", ".[embedded]")

    assert done.returncode == 3
    assert "ERROR: No matching distribution" in done.stderr
    assert "Collecting numpy" in (checkout / ".venv" / "install.log").read_text()


def test_large_downloads_are_shown_while_they_are_made(checkout: Path) -> None:
    lines = (
        "Collecting torch",
        "  Downloading torch-2.13.whl (185.2 MB)",
        "  Downloading a.whl (2 kB)",
    )
    script = "; ".join(f"echo '{line}'" for line in (*lines, "Installing collected packages: a"))
    python_that_says(checkout, script)

    done = run(checkout, "install", ".[embedded]")

    assert done.returncode == 0
    shown = ["  downloading torch-2.13.whl (185.2 MB)", "  installing 1 packages"]
    assert done.stdout.splitlines() == shown
