"""A PostgreSQL cluster of a test's own, which can be stopped and started."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from optimizer.triton.launcher import free_ports

_USER = "postgres"
PASSWORD = "s3cr:t/w@rd%"
QUOTED = quote(PASSWORD, safe="")


def _binaries() -> Path | None:
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else Path(on_path).parent if on_path else None


class PostgreSql:
    """A server on the loopback interface that asks for a password.

    Args:
        binaries: folder of initdb and pg_ctl.
        folder: of the cluster, empty.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        # PostgreSQL refuses to run as root.
        self._user = _USER if os.geteuid() == 0 else None
        self.port = free_ports(1)[0]

    @property
    def url(self) -> str:
        return f"postgresql://{_USER}:{QUOTED}@127.0.0.1:{self.port}/postgres"

    @property
    def shown(self) -> str:
        """The address as messages show it."""
        return f"postgresql+psycopg://{_USER}:***@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        self._folder.chmod(0o755)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ("-A", "scram-sha-256", "--pwfile", str(password), "-U", _USER, "--no-sync")
        self._run("initdb", "-D", str(self._data), *options)

    def start(self) -> None:
        server = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", log, "-o", server, "start")

    def stop(self) -> None:
        """Stop the server; its connections are cut off."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(
            command, user=self._user, cwd=self._folder, check=True, stdout=subprocess.DEVNULL
        )


@contextmanager
def running_server() -> Iterator[PostgreSql]:
    """A server that runs; the test is skipped where PostgreSQL is not installed.

    Its folder is none of pytest's own, which only the user that runs pytest may enter.
    """
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with TemporaryDirectory(prefix="postgresql-") as folder:
        server = PostgreSql(binaries, Path(folder))
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
