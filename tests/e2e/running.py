"""The optimizer as a process of its own, and what it leaves running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
PATIENCE_SECONDS = 60.0

_Stream = int | IO[bytes]

_MARK = "OPTIMIZER_TEST_MARK"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


class Marked:
    """All processes that were started with one environment variable, whoever their parent is."""

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex

    @property
    def environment(self) -> dict[str, str]:
        return {_MARK: self.value}

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those whose command contains `name`; a zombie is none."""
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                if process.environ().get(_MARK) == self.value and name in command:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def servers(self) -> list[psutil.Process]:
        # The shim is still python while it becomes the server.
        return [p for p in self.processes("--model-repository") if p.name() == "tritonserver"]

    def wait_gone(self, seconds: float = 15.0) -> None:
        wait_until(lambda: not self.processes(), f"gone: {self.processes()}", seconds)

    def end(self) -> None:
        """Kill what a failed test has left."""
        for process in self.processes():
            if process.pid != os.getpid():
                process.kill()


def shared_memory_of(pid: int) -> list[Path]:
    """Regions in /dev/shm of the servers that a process has started."""
    return sorted(SHARED_MEMORY.glob(f"tco_*_{pid}_*"))


RECORDING_ONCE = (
    sys.executable,
    "-c",
    "import sys; from optimizer.cli import main; from optimizer.search.recorded import recording; "
    "recording.ROUNDS = recording.MOST_ATTEMPTS = 1; main(sys.argv[3:])",
)
"""An interpreter whose `record` repeats each of the best points once, and no disturbed one.

How often it would is tested without a server, and takes most of the time on one.
"""


class Optimizer:
    """One `python -m optimizer ...`, its output in files.

    Args:
        folder: its working directory, which keeps the files of its output too.
        python: interpreter and its options.
        terminal: descriptor of a terminal that it is started in; nothing goes to the files then.
        output: descriptor that its output goes to in place of the file.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = (sys.executable,),
        terminal: int | None = None,
        output: int | None = None,
    ) -> None:
        self.marked = Marked()
        self._output = folder / f"output-{self.marked.value}.txt"
        self._errors = folder / f"errors-{self.marked.value}.txt"
        settings = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **self.marked.environment}
        with self._output.open("wb") as own_output, self._errors.open("wb") as own_errors:
            streams: tuple[_Stream, _Stream, _Stream] = (
                subprocess.DEVNULL,
                own_output if output is None else output,
                own_errors,
            )
            if terminal is not None:
                streams = (terminal, terminal, terminal)
            self.process = _with_default_signals(
                lambda: subprocess.Popen(
                    [*python, "-m", "optimizer", *map(str, arguments)],
                    cwd=folder,
                    env={**os.environ, **settings, **(environment or {})},
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    start_new_session=True,
                )
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def wait_for(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the output holds `text`; fails when the process ends without it."""
        end = time.monotonic() + seconds
        while text not in self.output:
            running = self.process.poll() is None
            said = f"{text!r} not in:\n{self.output}\n{self.errors}"
            assert (running and time.monotonic() < end) or text in self.output, said
            time.sleep(0.02)

    def wait(self, seconds: float = 200.0) -> int:
        """Its exit code, once nothing of it is left."""
        code = self.process.wait(seconds)
        self.assert_nothing_left()
        return code

    def assert_nothing_left(self) -> None:
        self.marked.wait_gone()
        wait_until(
            lambda: not shared_memory_of(self.pid), f"removed: {shared_memory_of(self.pid)}", 5.0
        )

    def kill(self) -> None:
        """End it as `kill -9` does; what it has started is told nothing."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        self.marked.end()


def run_to_end(
    folder: Path, command: str, *arguments: object, python: Sequence[str] = (sys.executable,)
) -> Optimizer:
    """Run a command to its end, with the artefact cache of its folder."""
    cache = ("--cache", folder / "cache") if command in ("run", "measure", "export") else ()
    optimizer = Optimizer([command, *cache, *arguments], folder, python=python)
    try:
        optimizer.wait(280)
    finally:
        optimizer.end()
    return optimizer


def _with_default_signals(
    start: Callable[[], subprocess.Popen[bytes]],
) -> subprocess.Popen[bytes]:
    """Start a process that ignores no signal, even where this one was told to (nohup, `&`)."""
    before = {number: signal.signal(number, _do_nothing) for number in _SIGNALS}
    try:
        return start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _do_nothing(*_: object) -> None:
    """A handler, which exec resets to the default; an ignored signal would stay ignored."""
