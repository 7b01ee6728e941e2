from __future__ import annotations

import datetime
import importlib
import io
import itertools
import json
import os
import pkgutil
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from rich.console import Console
from rich.text import Text

from optimizer import __version__
from optimizer import cli as optimizer_cli
from optimizer.analysis.nothing_confirmed import nothing_confirmed
from optimizer.analysis.run_summary import entry
from optimizer.analysis.study_reading import read_study
from optimizer.analysis.summary import MachineDrift, StudySummary
from optimizer.cli import main
from optimizer.cli.outcome import show_outcome
from optimizer.cli.watchers import LiveView, PlainLines, watching
from optimizer.commands.run import RunResult
from optimizer.commands.run_options import RunOptions
from optimizer.errors import (
    EverythingFailedError,
    OptimizerError,
    RequirementError,
    SpaceChangedError,
    StorageError,
    StudyBusyError,
)
from optimizer.files.shipped import shipped
from optimizer.measurement.level import Measurement
from optimizer.space_file.reader import load_space
from optimizer.study.event_text import trial_text
from optimizer.study.events import (
    ArtifactReady,
    DriftRunStarted,
    Event,
    LevelFinished,
    LevelStarted,
    Note,
    PhaseStarted,
    SearchStatusChanged,
    StepStarted,
    TrialFinished,
    TrialRecorded,
    TrialStarted,
)
from optimizer.study.history import History
from optimizer.study.search_status import ExpectedCost, SearchStatus
from tests.unit.commands import Commands, Said, imported_by
from tests.unit.studies import (
    HARDWARE,
    bounded,
    failed,
    found_by,
    infeasible,
    level,
    ok,
    record_of,
)
from tests.unit.test_summary import (
    FILE,
    A,
    B,
    C,
    D,
)
from tests.unit.whole_studies import WholeStudy

GOLDEN = Path(__file__).parents[1] / "golden"
HOSTILE = "[red]it[/nope] [StatusCode.INTERNAL] broke [/]"
# The command's name hides its module.
run_module = importlib.import_module("optimizer.cli.run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--trails", "3"], "No such option '--trails'"),
        (["run", "--trials", "0"], "Invalid value for '--trials': 0 is not in the range x>=1."),
        (["run", "--trials", "many"], "Invalid value for '--trials'"),
        (
            ["run", "--timeout", "8 hours"],
            "Invalid value for '--timeout': must be a number above 0 and s, m or h, such as 8h; "
            "got '8 hours'",
        ),
        (["run", "--timeout", "0h"], "such as 8h; got '0h'"),
        (
            ["run", "--study", "../elsewhere"],
            "Invalid value for '--study': must be letters, digits, - and _, at most 64; "
            "got '../elsewhere'",
        ),
        (["run", "--study", ""], "at most 64; got ''"),
        (["run", "--warm-start", "a b"], "Invalid value for '--warm-start'"),
        (["run", "--sampler", "best"], "Invalid value for '--sampler': 'best' is not one of"),
        (["run", "one.yaml", "two.yaml"], "unexpected extra argument"),
        (["walk"], "No such command 'walk'"),
        (["init", "--scheme"], "No such option"),
        (["measure"], "Missing argument 'SPACE'"),
        (
            ["measure", "a.yaml", "--set", "precision"],
            "Invalid value for '--set': must be PARAMETER=VALUE; got 'precision'",
        ),
        (["measure", "a.yaml", "--rate", "0"], "Invalid value for '--rate': 0.0 is not in"),
        (["measure", "a.yaml", "--rate", "nan"], "Invalid value for '--rate': nan is not"),
        (["measure", "a.yaml", "--rate", "inf"], "Invalid value for '--rate': inf is not"),
        (["measure", "a.yaml", "--seed", "-1"], "Invalid value for '--seed': -1 is not in"),
        (["measure", "a.yaml", "--set", f"precision={'x' * 600}"], "at most 500 characters"),
        (["plan", "one", "--demand", "nan"], "Invalid value for '--demand': nan is not"),
        (["plan", "one", "--headroom", "inf"], "Invalid value for '--headroom': inf is not"),
        (["plan", "one", "--daily", "1:inf"], "Invalid value for '--daily': must be LEAST:MOST"),
        (["plan", "one", "--daily", "nan:1"], "Invalid value for '--daily': must be LEAST:MOST"),
        (["plan", "one", "--most", f"a={'9' * 5000}"], "must be INSTANCE_TYPE=COUNT"),
        (["plan", "one", "--launch", f"{'9' * 400}h"], "and at most a year"),
        (["recommend", "one", "--demand", "1e308"], "Invalid value for '--demand'"),
        (["recommend", "one", "--headroom", "nan"], "Invalid value for '--headroom'"),
        (["verify", "bundle", "--within", "nan"], "Invalid value for '--within'"),
        (["run", "--also-limit", f"{'9' * 16}ms"], "and at most an hour"),
        (["run", "--trials", "9" * 5000], "Invalid value for '--trials'"),
        (["pareto", "one", "--limit", f"{'9' * 400}s"], "and at most an hour"),
        (["measure", "a.yaml", "--with", "wrk"], "'wrk' is not 'perf_analyzer'"),
        (
            ["measure", "a.yaml", "--curve", "--users", "u.json"],
            "give one of --curve, --rate, --users, not --curve and --users",
        ),
        (
            ["measure", "a.yaml", "--users", "u.json", "--with", "perf_analyzer"],
            "--with perf_analyzer goes with rates, not with --users",
        ),
    ],
)
def test_what_the_command_line_cannot_mean_is_exit_code_2(
    optimizer: Commands, arguments: list[str], message: str
) -> None:
    said = optimizer(*arguments)
    assert said.code == 2
    assert message in " ".join(said.err.split())
    assert said.out == ""
    assert list(Path().iterdir()) == []


def test_a_space_file_that_is_not_there_is_exit_code_2(optimizer: Commands) -> None:
    said = optimizer("run", "nowhere.yaml")
    assert said == Said(
        2,
        "",
        "error: nowhere.yaml: 1 mistake\n  file: must be readable (No such file or directory)\n",
    )
    assert list(Path().iterdir()) == []


def test_mistakes_in_a_space_file_are_exit_code_2_and_write_nothing(optimizer: Commands) -> None:
    Path("space.yaml").write_text(FILE.replace("fixed: 32", "fixed: thirty"))
    said = optimizer("run", "space.yaml")
    assert said.code == 2
    # Its price is not in the shipped list either.
    assert said.err.startswith("error: space.yaml: 2 mistakes\n  line 6: models.bert.lengths.fixed")
    assert [path.name for path in Path().iterdir()] == ["space.yaml"]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["init", "-h"]])
def test_help_is_exit_code_0(optimizer: Commands, arguments: list[str]) -> None:
    said = optimizer(*arguments)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Usage: optimizer")


def test_every_command_is_listed_on_one_line_and_is_in_the_module_of_its_name(
    optimizer: Commands,
) -> None:
    _, _, listed = optimizer("--help").out.partition("Start:\n")
    lines = [line.strip() for line in listed.splitlines()]
    assert [line for line in lines if line.endswith(":")] == ["Analyse:", "Deploy:", "Advanced:"]
    said = dict(line.split(maxsplit=1) for line in lines if line.endswith("."))
    assert all(text.endswith(".") and not text.endswith("...") for text in said.values())
    names = [module.name for module in pkgutil.iter_modules(optimizer_cli.__path__)]
    modules = {name: importlib.import_module(f"optimizer.cli.{name}") for name in names}
    found = {name: getattr(module, name, None) for name, module in modules.items()}
    own = {name: value for name, value in found.items() if isinstance(value, click.Command)}
    assert sorted(own) == sorted(said)
    context = click.Context(optimizer_cli.commands)
    assert all(optimizer_cli.commands.get_command(context, n) is own[n] for n in own)


def test_help_imports_no_command() -> None:
    unused = {"optimizer.commands", "optimizer.search", "numpy", "pydantic"}
    assert imported_by("--help").isdisjoint(unused)


def test_the_version_is_the_packages(optimizer: Commands) -> None:
    assert optimizer("--version").out.split() == ["optimizer,", "version", __version__]


def test_without_a_command_there_is_help(optimizer: Commands) -> None:
    said = optimizer()
    assert said.code == 2
    assert "Usage: optimizer" in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpaceChangedError("study quick was started with another space or machine"), 2),
        (StudyBusyError("study quick is being run by process 7"), 2),
        (RequirementError("this space needs torch"), 3),
        (StorageError("cannot write x: No space left on device"), 4),
        (EverythingFailedError("5 trials in a row failed"), 4),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(
    optimizer: Commands, monkeypatch: pytest.MonkeyPatch, error: OptimizerError, code: int
) -> None:
    def fail(*_: object) -> RunResult:
        raise error

    monkeypatch.setattr(run_module, "run_study", fail)
    assert optimizer("run") == Said(code, "", f"error: {error}\n")


def test_a_defect_is_a_traceback(optimizer: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> RunResult:
        raise ZeroDivisionError

    monkeypatch.setattr(run_module, "run_study", fail)
    with pytest.raises(ZeroDivisionError):
        main(["run"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_exit_code_130_and_resumable(
    optimizer: Commands, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup, which ignores one
    cleared = []

    def interrupted(*_: object) -> RunResult:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleared.append("the server")
        pytest.fail("it went on")

    monkeypatch.setattr(run_module, "run_study", interrupted)
    said = optimizer("run")
    assert said.code == 130
    assert said.err == f"interrupted ({number.name}); rerun the command to resume\n"
    assert cleared == ["the server"]
    assert signal.getsignal(number) == signal.SIG_DFL, "a second one would end it at once"


def test_options_become_the_request(
    optimizer: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[RunOptions] = []

    def take(request: RunOptions, *_: object) -> RunResult:
        requests.append(request)
        raise StorageError("enough")

    monkeypatch.setattr(run_module, "run_study", take)
    optimizer("run")
    optimizer(
        "run", "my.yaml", "--study", "night-1", "--trials", "40", "--timeout", "90m",
        "--seed", "7", "--sampler", "tpe", "--storage", "postgresql://here/db",
        "--warm-start", "night-0", "--results", "out", "--cache", "kept",
    )  # fmt: skip
    optimizer("run", "--until", "07:00")
    optimizer("run", "--regret", "3%")
    optimizer("run", "--also-limit", "300ms", "--also-limit", "0.1s")
    optimizer("run", "--also-limit", "300ms", "--sampler", "guided")
    monkeypatch.setenv("OPTIMIZER_CACHE", "/elsewhere")
    monkeypatch.setenv("OPTIMIZER_STORAGE", "postgresql://there/db")
    optimizer("run")
    assert "OPTIMIZER_STORAGE" not in os.environ
    quickstart = shipped("search_spaces") / "quickstart.yaml"
    default = RunOptions(quickstart)
    assert requests == [
        default,
        RunOptions(
            Path("my.yaml"), "night-1", 40, 5400.0, None, None, 7, "tpe", "postgresql://here/db",
            "night-0", results=Path("out"), cache="kept",
        ),
        replace(default, until=datetime.time(7)),
        replace(default, regret_percent=3.0),
        replace(default, also_limits_ms=(300.0, 100.0)),
        replace(default, also_limits_ms=(300.0,), sampler="guided"),
        replace(default, cache="/elsewhere", storage="postgresql://there/db"),
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["cache", "status"])
def test_no_command_leaves_the_storages_password_to_the_servers_that_it_starts(
    optimizer: Commands, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("OPTIMIZER_STORAGE", "postgresql://me:s3cret@db/x")
    assert optimizer(command).code == 0
    assert "OPTIMIZER_STORAGE" not in os.environ


def test_init_writes_the_commented_file_and_says_what_is_next(optimizer: Commands) -> None:
    said = optimizer("init")
    assert said == Said(
        0, "wrote space.yaml\nedit it, then run: python -m optimizer run space.yaml\n", ""
    )
    assert Path("space.yaml").read_text() == shipped("space_template.yaml").read_text()
    assert load_space(Path("space.yaml"), {}, HARDWARE).study == "my-model"


def test_init_overwrites_nothing(optimizer: Commands) -> None:
    Path("mine.yaml").write_text("mine")
    said = optimizer("init", "mine.yaml")
    assert said == Said(2, "", "error: mine.yaml: must not exist yet; it is not overwritten\n")
    assert Path("mine.yaml").read_text() == "mine"


def test_init_into_a_folder_that_is_not_there(optimizer: Commands) -> None:
    said = optimizer("init", "nowhere/space.yaml")
    assert said.code == 2
    assert said.err == ("error: nowhere/space.yaml: must be writable (No such file or directory)\n")


def test_init_writes_the_schema_for_editors(optimizer: Commands) -> None:
    assert optimizer("init", "space.schema.json", "--schema") == Said(
        0, "wrote space.schema.json\n", ""
    )
    assert "models" in json.loads(Path("space.schema.json").read_text())["properties"]


# What is seen while a study runs.


@pytest.fixture
def _half_an_hour_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock but the first is half an hour after it."""
    times = itertools.chain([0.0], itertools.repeat(1800.0))
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("optimizer.cli.watchers.time", clock)


def printed(*events: Event) -> str:
    file = io.StringIO()
    lines = PlainLines(Console(file=file, width=20))
    for event in events:
        lines(event)
    return file.getvalue()


OK = record_of(0, B, ok(130))
BEST = found_by(OK)
FAILED = record_of(1, D, failed(HOSTILE))
LINES: list[tuple[Event, str]] = [
    (PhaseStarted("search", 12), "search: up to 12 steps\n"),
    (StepStarted("building bert/openvino/int8"), ""),
    (ArtifactReady("bert/openvino/int8", "cosine 0.9990", False),
     "  bert/openvino/int8: cosine 0.9990\n"),
    (ArtifactReady("bert/openvino/int8", HOSTILE, True),
     f"  bert/openvino/int8: excluded: {HOSTILE}\n"),
    (TrialStarted(3, 2, 12, A), "  2/12 openvino fp32, no batching, 1 x 1 thread\n"),
    (DriftRunStarted(A),
     "  baseline rerun: openvino fp32, no batching, 1 x 1 thread\n"),
    (LevelStarted(250.0, 4.0), ""),
    (LevelFinished(level(0.3, 45.67)), "      150/s: 150/s served, p95 45.7 ms\n"),
    (LevelFinished(level(0.3, 45.67, kind="saturation")),
     "      saturation: 150/s served, p95 45.7 ms\n"),
    (TrialFinished(OK, BEST), "    ok: 130/s, $0.7692 per million\n"),
    (TrialFinished(replace(OK, score=None), None), "    ok: confirmed at 130/s\n"),
    (TrialFinished(record_of(2, C, infeasible(80)), BEST),
     "    infeasible: over the limit at the floor\n"),
    (TrialFinished(record_of(2, C, bounded(80)), BEST), "    pruned: saturates below the bound\n"),
    (TrialFinished(FAILED, BEST), f"    failed: {HOSTILE}\n"),
    (SearchStatusChanged(SearchStatus(regret_bound=0.2)), ""),
    (TrialRecorded(OK), ""),
    (Note(HOSTILE), f"{HOSTILE}\n"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "line"), LINES)
def test_each_event_is_a_plain_line_however_wide(event: Event, line: str) -> None:
    assert printed(event) == line


EXPECTED = ExpectedCost("the largest saving", 0.5, 0.4, 0.625, 0.9, None, 20.0)
DETAILS: list[tuple[Event, str]] = [
    (StepStarted("building bert/openvino/int8"), "      building bert/openvino/int8\n"),
    (LevelStarted(None, 3.0), "      saturating for 3 s\n"),
    (LevelStarted(250.0, 4.0), "      offering 250/s for 4 s\n"),
    (TrialStarted(3, 2, 12, A, EXPECTED),
     "  2/12 openvino fp32, no batching, 1 x 1 thread\n"
     "      expected $0.5000 per million (0.4000 to 0.6250), 90% likely within the limits, "
     "measured in 20 s; reason: the largest saving\n"),
    (SearchStatusChanged(SearchStatus(regret_bound=0.2)),
     "  remaining potential: up to 20% cheaper (95% bound)\n"),
    (SearchStatusChanged(SearchStatus()), ""),
]  # fmt: skip


@pytest.mark.parametrize(("event", "line"), DETAILS)
def test_every_step_is_a_line_to_who_wants_to_know(event: Event, line: str) -> None:
    file = io.StringIO()
    with watching(Console(file=file, width=20), "verbose") as watch:
        watch(event)
    assert file.getvalue() == line


WARNINGS: list[tuple[Event, str]] = [
    (Note("the price is old", warning=True), "warning: the price is old\n"),
    (ArtifactReady("bert/openvino/int8", HOSTILE, True),
     f"warning: bert/openvino/int8 is excluded: {HOSTILE}\n"),
    (LevelFinished(replace(level(0.3), warnings=("others took part",))),
     "warning: others took part\n"),
    (TrialFinished(FAILED, BEST),
     f"warning: openvino int8, no batching, 2 x 1 thread failed: {HOSTILE}\n"),
]  # fmt: skip


def test_who_wants_to_hear_little_gets_each_warning_once() -> None:
    file = io.StringIO()
    with watching(Console(file=file, width=20, force_terminal=True), "quiet") as watch:
        for event, _ in [*LINES, *WARNINGS, *WARNINGS, *DETAILS]:
            watch(event)
    said = Text.from_ansi(file.getvalue()).plain
    for _, line in WARNINGS:
        assert said.count(line.strip()) == 1
    assert said.count("\n") == len(WARNINGS)


def test_errors_of_a_level_are_said() -> None:
    broken = level(0.3)
    (stream,) = broken.streams
    broken = replace(broken, streams=(replace(stream, errors=3),))
    assert printed(LevelFinished(broken)) == (
        "      150/s: 150/s served, p95 50.0 ms, limit missed: 3 of 1000 requests failed: None\n"
    )


def test_a_level_over_the_limit_says_which_and_how_it_is_known() -> None:
    assert printed(LevelFinished(level(0.3, 145.8))) == (
        "      150/s: 150/s served, p95 145.8 ms, "
        "limit missed: p95 of bert 145.8 ms, over the limit of 100 ms\n"
    )
    late = "7 late requests of bert, too many for 130 in all"
    proven = replace(level(0.3, 90.0), verdict="infeasible", ended=late)
    assert printed(LevelFinished(proven)) == (
        f"      150/s: 150/s served, p95 90.0 ms, infeasible: {late}\n"
    )


def test_a_capacity_that_was_not_measured_stands_with_the_load_that_was() -> None:
    levels = (level(0.4, kind="saturation"), level(0.174, 77.0), level(0.36, 130.0))
    beyond = replace(
        OK, measurement=Measurement(levels[:2], 0.348, 0.2, 0.4, 500.0, "its load time is spent")
    )
    assert trial_text(beyond) == (
        "174/s (extrapolated from 87/s, p95 77.0 ms), $0.7692 per million"
    )
    between = replace(
        OK, measurement=Measurement(levels, 0.348, 0.2, 0.4, 500.0, "its load time is spent")
    )
    assert trial_text(between).startswith("174/s (interpolated from 87/s, p95 77.0 ms), ")
    assert trial_text(OK) == "130/s, $0.7692 per million", "measured itself"


def test_a_level_says_what_it_proved_or_why_it_is_void_and_warns() -> None:
    proven = replace(level(0.3), verdict="feasible", warnings=("others took part: end them",))
    assert printed(LevelFinished(proven)) == (
        "      150/s: 150/s served, p95 50.0 ms, feasible\n"
        "        warning: others took part: end them\n"
    )
    lagged = replace(proven.client, lag_ms=7.25, longest_lag_ms=5.0)
    void = replace(proven, client=lagged, warnings=())
    assert printed(LevelFinished(void)) == (
        "      150/s: 150/s served, p95 50.0 ms, discarded: the load generator fell 7.2 ms behind "
        "(p99; 5.0 ms are allowed) with 1 process: give it free cores, or permit real-time "
        "priority (ulimit -r 1)\n"
    )
    assert "warning: others took part" in words(
        drawn(80, TrialStarted(0, 1, 12, A), LevelFinished(proven))
    )


SEARCH: list[Event] = [
    Note("results: /somewhere"),
    PhaseStarted("search", 12),
    TrialStarted(0, 1, 12, B),
    TrialFinished(OK, BEST),
    TrialStarted(1, 2, 12, D),
    TrialFinished(FAILED, BEST),
    TrialStarted(2, 3, 12, A),
    StepStarted("loading the model"),
    LevelStarted(None, 3.0),
    LevelFinished(level(0.3, 45.67, kind="saturation")),
    LevelStarted(142.5, 4.0),
]
LATER: list[Event] = [
    *SEARCH,
    LevelFinished(level(0.285, 30.0)),
    TrialFinished(record_of(2, A, ok(140)), found_by(record_of(2, A, ok(140)))),
    SearchStatusChanged(SearchStatus(regret_bound=0.11)),
    TrialStarted(3, 4, 12, C, EXPECTED),
    LevelFinished(replace(level(0.4, 80.0, kind="saturation"), warnings=("others took part",))),
    LevelFinished(level(0.38, 60.0)),
    LevelFinished(level(0.36, 20.0)),
    LevelStarted(170.0, 4.0),
]


def drawn(width: int, *events: Event, height: int = 25) -> str:
    view = LiveView()
    for event in events:
        view.watch(event)
    file = io.StringIO()
    Console(file=file, width=width, height=height, force_terminal=True, color_system=None).print(
        view
    )
    return file.getvalue()


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.usefixtures("_half_an_hour_in")
def test_the_live_view_shows_where_a_search_stands() -> None:
    assert drawn(80, *SEARCH) == (GOLDEN / "live_view.txt").read_text()


@pytest.mark.usefixtures("_half_an_hour_in")
@pytest.mark.parametrize("width", [40, 80])
def test_the_live_view_shows_what_is_expected_and_how_it_goes(width: int) -> None:
    assert drawn(width, *LATER) == (GOLDEN / f"live_view_later_{width}.txt").read_text()


def test_a_terminal_without_unicode_gets_bars_that_it_can_show() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    view = LiveView()
    for event in LATER:
        view.watch(event)
    Console(file=file, width=80, force_terminal=True, color_system=None).print(view)
    file.seek(0)
    said = words(file.read().replace("|", " "))
    assert "rate @@# 180/s" in said
    assert "p95 @*- 20.0 ms" in said


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_live_view_fits_any_width(width: int) -> None:
    assert {len(line) for line in drawn(width, *LATER).splitlines()} == {width}
    text = drawn(width, *SEARCH)
    assert {len(line) for line in text.splitlines()} == {width}
    if width >= 40:
        said = words(text)
        assert "search" in said
        assert "2/12" in said
        assert "now openvino fp32, no batching, 1 x 1 thread; offering 142/s for 4 s" in said
        assert "best openvino fp32, no batching, 2 x 1 thread: 130/s, $0.7692 per million" in said


def test_the_live_view_keeps_the_latest_level_and_the_best_trial_on_24_lines() -> None:
    notes = [Note("a text that fills more than one line of the terminal " * 2, warning=True)] * 3
    later = [LevelFinished(level(0.4 + n / 100, 300.0)) for n in range(6)]
    text = drawn(80, *notes, *LATER, *later, height=24)
    assert len(text.splitlines()) <= 24
    assert "225/s: 225/s served" in text
    assert "best" in text


def test_the_live_view_shows_what_others_wrote_as_it_is() -> None:
    for event in (Note(HOSTILE), ArtifactReady("x", HOSTILE, True), TrialFinished(FAILED, None)):
        assert HOSTILE in words(drawn(200, event))


def test_a_new_phase_begins_anew() -> None:
    said = words(drawn(200, *SEARCH, PhaseStarted("confirm", 8), StepStarted("loading")))
    assert "confirm" in said
    assert "0/8" in said
    assert "now loading" in said
    assert "saturation" not in said
    assert "best openvino" in said


def test_every_event_can_be_drawn_first() -> None:
    for event, _ in LINES:
        assert "triton cost optimizer" in drawn(80, event)


def test_the_last_trials_are_kept_in_view() -> None:
    ended = [TrialFinished(record_of(n, A, failed(f"reason {n}.")), None) for n in range(20)]
    said = drawn(80, *ended)
    assert "reason 19." in said
    assert "reason 12." in said
    assert "reason 11." not in said


def test_a_terminal_gets_the_view_and_is_left_as_it_was() -> None:
    file = io.StringIO()
    with watching(Console(file=file, force_terminal=True, width=80)) as watch:
        for event in SEARCH:
            watch(event)
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    text = file.getvalue()
    assert "triton cost optimizer" in text
    assert text.count(hidden) == text.count(shown) == 1
    assert text.rindex(shown) > text.rindex("triton cost optimizer")


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    with watching(Console(file=file, force_terminal=True, width=80)) as watch:
        for event in SEARCH:
            watch(event)
    assert "\x1b" not in file.getvalue()
    assert "  1/12 openvino fp32, no batching, 2 x 1 thread\n" in file.getvalue()


def test_no_color_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    with watching(Console(file=file, force_terminal=True, width=80)) as watch:
        for event in LATER:
            watch(event)
    styles = re.findall(r"\x1b\[([\d;]+)m", file.getvalue())
    # Bold and dim are no colours.
    assert {code for style in styles for code in style.split(";")} <= {"0", "1", "2"}


def test_anything_else_gets_plain_lines() -> None:
    file = io.StringIO()
    with watching(Console(file=file)) as watch:
        watch(Note("hello"))
    assert file.getvalue() == "hello\n"


# What is seen when a study has ended.


REASON = record_of(5, C, failed(HOSTILE))
FOUND = WholeStudy(
    Path("quick"), {0: 50.0, 1: 130.0, 2: 0.0, 3: 40.0}, {1: (125, 125), 0: (50, 52)}
)


def ended(study: WholeStudy, root: Path, **changes: Any) -> RunResult:
    """What a run leaves of a study, with a failed trial that quotes a stranger."""
    directory = replace(study, root=root / "quick").written()
    directory.trials.write(REASON)
    directory.best.mkdir(exist_ok=True)
    reading = read_study(root, "quick")
    best = reading.own_decision.best
    summary = StudySummary(
        study="quick",
        ended="the budget of 5 trials is used up",
        remaining_gap=0.04,
        trials=History({r.number: r for r in reading.trials}).counts(),
        best=entry(best.candidate) if best is not None and best.confirmed else None,
        nothing_found=None
        if best is not None
        else nothing_confirmed(reading.trials, reading.confirmations),
        pace=MachineDrift("", (50.0, 48.0), -0.04),
        accuracy_evidence="synthetic",
        measuring_seconds=1234.0,
        building_seconds=7.5,
        overhead_seconds_per_trial_median=2.0,
        wall_seconds=1461.4,
    )
    was_finished = changes.pop("was_finished", False)
    return RunResult(directory, replace(summary, **changes), was_finished)


def shown(result: RunResult, width: int = 80) -> str:
    file = io.StringIO()
    show_outcome(Console(file=file, width=width), result)
    return file.getvalue().replace(str(result.directory.root), "results/quick")


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize(
    ("golden", "study", "was_finished"),
    [
        ("outcome_found.txt", FOUND, False),
        ("outcome_none.txt", WholeStudy(Path("quick"), {2: 0.0}), False),
        ("outcome_finished.txt", FOUND, True),
    ],
)
def test_the_end_of_a_study(
    tmp_path: Path, golden: str, study: WholeStudy, was_finished: bool
) -> None:
    result = ended(study, tmp_path, was_finished=was_finished)
    assert shown(result) == (GOLDEN / golden).read_text()


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "To measure more: a larger --trials resumes it; --study NAME starts another"),
        ({"settled": True}, "To measure more: --sampler gp resumes it; --study NAME starts"),
        ({"space_exhausted": True}, "To measure more: widen the parameters; --study NAME starts"),
    ],
)
def test_a_finished_study_says_what_would_measure_more(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    assert said in shown(ended(FOUND, tmp_path, was_finished=True, **keys))


@pytest.mark.usefixtures("fast_disk")
def test_what_others_wrote_is_printed_as_it_is(tmp_path: Path) -> None:
    assert HOSTILE in shown(ended(FOUND, tmp_path), width=300)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize(("study", "code"), [(FOUND, 0), (WholeStudy(Path("quick"), {2: 0.0}), 1)])
def test_the_exit_code_says_whether_anything_met_the_limits(
    optimizer: Commands,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    study: WholeStudy,
    code: int,
) -> None:
    result = ended(study, tmp_path)
    monkeypatch.setattr(run_module, "run_study", lambda *_: result)
    said = optimizer("run")
    assert (said.code, said.err) == (code, "")
    assert "Trials" in said.out
