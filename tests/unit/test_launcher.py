import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.triton import embedded_launcher, launcher


def test_regions_of_a_dead_optimizer_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = tmp_path / f"tco_{dead.pid}_1_abc"
    kept = {
        tmp_path / f"tco_{os.getpid()}_1_abc",
        tmp_path / "tco_nobody_1_abc",
        tmp_path / "psm_1",
    }
    for region in {gone, *kept}:
        region.touch()
    monkeypatch.setattr(embedded_launcher, "_SHARED_MEMORY", tmp_path)
    embedded_launcher._remove_regions_of_the_dead()
    assert set(tmp_path.iterdir()) == kept


def test_free_ports_are_distinct() -> None:
    ports = launcher.free_ports(3)
    assert len(set(ports)) == 3


def test_the_last_errors_of_a_log_are_told_without_their_prefix() -> None:
    log = (
        'I1123 10:00:00.000000 7 server.cc:1] "fine"\n'
        'E1123 10:00:01.000000 7 server.cc:2] "first"\n'
        'E1123 10:00:02.000000 7 server.cc:3] "second"\n'
    )
    assert launcher.last_errors(log, lines=1) == "its log says: second"
    assert launcher.last_errors("one\ntwo\n") == "its last words: two"
    assert launcher.last_errors("") == "its log is empty"
