"""What the records in a study's folder recommend."""

from __future__ import annotations

from optimizer.study.decision import Decision, decide
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import read_searched


def stored_decision(directory: StudyDirectory) -> Decision:
    """Return what the records in a study's folder recommend; nothing before its search.

    Raises:
        StorageError: when its files are damaged.
    """
    if not directory.searched.exists():
        return Decision()
    own = read_searched(directory)
    trials, confirmations = directory.trials.read_all(), directory.confirmations.read_all()
    return decide(trials.values(), confirmations.values(), own.price, own.demand, own.search_space)
