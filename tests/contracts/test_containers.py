"""What `ContainerEngine` promises, on a real engine. Images are looked up, never fetched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import docker
import psutil
import pytest

from optimizer.errors import ContainerFailure, RequirementError
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, Mount, RunningContainer
from tests.docker.engine import prepared_image
from tests.e2e.running import ROOT

pytestmark = pytest.mark.docker

Start = Callable[..., RunningContainer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python in a container of the tests' image."""
    image, engine = prepared_image(), ContainerEngine.connect()
    with ExitStack() as stack:

        def run(code: str, **settings: object) -> RunningContainer:
            task = ContainerTask(image, ("python3", "-c", code), **settings)  # type: ignore[arg-type]
            container = engine.start(task)
            stack.callback(container.stop, 0.0)
            return container

        yield run


def test_output_and_exit_code_are_told(start: Start) -> None:
    container = start("print('one'); print('two', end=''); raise SystemExit(3)")
    assert list(container.lines()) == ["one", "two"]
    assert container.wait(20.0) == 3
    assert container.exit_code() == 3
    assert container.pid() is None
    assert container.memory_bytes() is None


def test_waiting_ends_with_the_time_or_the_container(start: Start) -> None:
    container = start("import time; time.sleep(1.5)")
    assert container.wait(0.2) is None
    assert container.wait(20.0) == 0


def test_a_signal_is_told_as_docker_does(start: Start) -> None:
    container = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert container.wait(20.0) == 128 + 9


def test_stop_asks_first_and_leaves_nothing(start: Start) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    container = start(code)
    lines = container.lines()
    assert next(lines) == "up"
    container.stop(10.0)
    assert list(lines) == ["asked"]
    assert container.name not in names()
    assert (container.exit_code(), container.pid()) == (137, None)
    container.stop(10.0)


def names() -> list[str]:
    return [str(c.name) for c in docker.from_env().containers.list(all=True, ignore_removed=True)]


def test_a_container_is_what_its_task_says(start: Start, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "write").mkdir()
    (tmp_path / "read" / "file").write_text("found")
    code = """
import os, resource
print(os.environ["KEY"], os.getcwd(), os.sched_getaffinity(0))
print(open("/in/file").read())
open("/out/file", "w").write("kept")
try: open("/in/other", "w")
except OSError as error: print(error.strerror)
print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize)
print(resource.getrlimit(resource.RLIMIT_STACK))
print([line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1])
print(sorted(os.listdir("/sys/class/net")))
"""
    container = start(
        code,
        environment=(("KEY", "it's $HOME"),),
        working_directory="/in",
        mounts=(
            Mount(tmp_path / "read", "/in"),
            Mount(tmp_path / "write", "/out", read_only=False),
        ),
        cores=(0,),
        shared_memory_bytes=32 * 2**20,
    )
    assert container.wait(20.0) == 0
    said = list(container.lines())
    assert said[0] == "it's $HOME /in {0}"
    assert said[1:3] == ["found", "Read-only file system"]
    assert (tmp_path / "write" / "file").read_text() == "kept"
    assert said[3:5] == [str(32 * 2**20), str((64 * 2**20, 64 * 2**20))]
    administer = 1 << 21
    assert not int(said[5], 16) & administer, "not privileged"
    assert said[6] == "['lo']"


def test_memory_counts_what_is_held_and_no_file(start: Start) -> None:
    code = """
import time
with open("/tmp/file", "wb") as file: file.write(bytes(80 * 2**20))
held = bytearray(b"x") * (100 * 2**20)
print("up", flush=True); time.sleep(60)
"""
    container = start(code)
    lines = container.lines()
    assert next(lines) == "up"
    memory = container.memory_bytes()
    container.stop(0.0)
    assert list(lines) == []
    assert memory is not None
    assert 100 * 2**20 <= memory < 140 * 2**20


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mounts": (Mount(Path("/nowhere"), "/in"),)}, "/nowhere"),
        ({"cores": (4000,)}, "4000"),
    ],
    ids=["mount", "cores"],
)
def test_what_the_engine_refuses_is_told_and_leaves_nothing(
    start: Start, changed: dict[str, object], told: str
) -> None:
    before = names()
    with pytest.raises(ContainerFailure, match=told):
        start("", **changed)
    assert names() == before


def test_an_image_is_looked_up_and_never_fetched(start: Start) -> None:
    engine = ContainerEngine.connect()
    image = engine.image(prepared_image())
    assert image.id.startswith("sha256:")
    assert image.environment["TRITON_SERVER_VERSION"] == "2.51.0"
    with pytest.raises(
        RequirementError, match=r"no image nobody/has:it: docker pull nobody/has:it"
    ):
        engine.image("nobody/has:it")


def test_a_container_of_a_killed_owner_is_reaped_and_those_of_the_living_are_not(
    start: Start,
) -> None:
    own = start("import time; time.sleep(60)")
    code = (
        "import os, signal\n"
        "from optimizer.machine.docker_engine import *\n"
        "made = ContainerEngine.connect().start("
        f"ContainerTask({prepared_image()!r}, ('sleep', '60')))\n"
        "print(made.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    left = done.stdout.strip()
    assert left in names(), done.stderr
    assert left in ContainerEngine.connect().reap()
    assert left not in names()
    assert own.exit_code() is None
    assert ContainerEngine.connect().reap() == ()


def test_no_process_of_a_stopped_container_is_left(start: Start) -> None:
    container = start("import os, time; os.fork(); time.sleep(60)")
    first = container.pid()
    assert first is not None
    end = time.monotonic() + 10.0
    while len(below := psutil.Process(first).children(recursive=True)) < 2:
        assert time.monotonic() < end
    container.stop(1.0)
    assert not [process for process in below if process.is_running()]
