"""The checks for a machine with a GPU: their report, and what they read from engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.check_report import CannotRunError, Check, Figures, Outcome, Report, run_checks
from tests.e2e.engine_on_gpu import names_in
from tests.e2e.gpu_search import fused_attentions


def passes() -> Figures:
    return {"MiB": 12}


def fails() -> Figures:
    raise AssertionError("3 is not 4")


def cannot() -> Figures:
    raise CannotRunError("there is no GPU")


def reported(folder: Path, checks: Mapping[str, Check]) -> Report:
    return run_checks("On a GPU", ["- a note"], checks, folder)


def test_a_check_that_fails_or_cannot_run_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    report = reported(tmp_path, {"a": fails, "b": cannot, "c": passes})
    assert [outcome.state for outcome in report.outcomes] == ["failed", "not run", "passed"]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# On a GPU\n\n- a note\n")
    assert "## a: failed\n\n```text\nAssertionError: 3 is not 4 (test_gpu_checks.py:" in text
    assert "## b: not run\n\n```text\nthere is no GPU\n" in text
    assert "## c: passed\n\n- MiB: 12\n" in text
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["exit_code"] == 1
    assert content["outcomes"][2]["figures"] == {"MiB": 12}


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([passes, passes], 0),
        ([passes, cannot], 3),
        ([fails, cannot], 1),
        ([fails, passes], 1),
    ],
)
def test_the_exit_code_tells(tmp_path: Path, checks: list[Check], code: int) -> None:
    assert reported(tmp_path, dict(zip("ab", checks, strict=True))).exit_code == code


def test_a_run_that_is_cut_off_leaves_what_it_has_done(tmp_path: Path) -> None:
    def is_cut_off() -> Figures:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reported(tmp_path, {"a": passes, "b": is_cut_off, "c": passes})
    content = json.loads((tmp_path / "report.json").read_text())
    assert [each["state"] for each in content["outcomes"]] == ["passed", "not run", "not run"]
    assert content["outcomes"][2]["cause"] == "it was not reached"
    assert content["exit_code"] == 3


def test_checks_that_were_never_reached_are_no_success() -> None:
    assert Report("", (), (Outcome("a", "passed"), Outcome("b", "not run"))).exit_code == 3


def test_attentions_are_counted_in_engines_with_and_without_details() -> None:
    names = ["_gemm_mha_v2_myl0_3", "__myl_Move_myl0_1", "_gemm_mha_v2_myl0_9"]
    for listed in (names, [{"Name": name, "LayerType": "kgen"} for name in names]):
        information = json.dumps({"Layers": listed, "Bindings": ["input_ids"]})
        assert names_in(information) == names
        assert fused_attentions(names_in(information)) == 2
