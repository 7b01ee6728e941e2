"""The end of a run, on the terminal."""

from __future__ import annotations

from rich.console import Console

from optimizer.analysis.study_reading import read_study
from optimizer.analysis.summary import StudySummary
from optimizer.cli.terminal import print_parts, print_path, print_sentence
from optimizer.commands.run import RunResult
from optimizer.report.study_outcome import StudyOutcome


def show_outcome(console: Console, result: RunResult) -> None:
    """Print what came of a study, and where its files are."""
    directory, summary = result.directory, result.summary
    if result.was_finished:
        print_sentence(console, f"Study {summary.study} is finished: {summary.ended}.")
        print_sentence(
            console, f"To measure more: {_how_to_go_on(summary)}--study NAME starts another one."
        )
    study = read_study(directory.root.parent, directory.name)
    print_parts(console, StudyOutcome(study, summary).parts())
    for what, path in (
        ("summary", directory.summary),
        *([("model repository", directory.best)] if summary.best is not None else []),
        ("trials", directory.trials.folder),
        ("logs", directory.root / "logs"),
    ):
        if path.exists():
            print_path(console, what, path)


def _how_to_go_on(summary: StudySummary) -> str:
    """Return what would measure more; nothing does where every configuration is measured."""
    if summary.space_exhausted:
        return "widen the parameters; "
    option = "--sampler gp" if summary.settled else "a larger --trials"
    return f"{option} resumes it; "
