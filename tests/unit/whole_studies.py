"""Whole studies on the disk, as a run leaves them: two trials or more, of which some confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from optimizer.analysis.run_summary import entry
from optimizer.analysis.summary import MachineDrift, StudySummary, write_summary
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.files.atomic import write_json
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.trial_record import TrialRecord
from optimizer.space_file.reader import Space, load_space
from optimizer.study.decision import stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace, write_searched
from tests.unit.studies import HARDWARE, MACHINE, PRICE, infeasible, level, ok, record_of

CONTENT: Mapping[str, Any] = {
    "study": "one",
    "models": {
        "bert": {
            "source": {"class": "BertForSequenceClassification", "config": {}},
            "inputs": {"input_ids": {"minimum": 0, "maximum": 99}},
            "lengths": {"fixed": 32},
        }
    },
    "traffic": {"demand_per_second": 500},
    "limit": {"latency_ms": 100},
    "price": {"instance_type": PRICE.instance_type},
    "parameters": {
        "runtime": ["openvino"],
        "precision": ["fp32", "int8"],
        "batching": [False],
        "max_batch_size": [4],
        "max_queue_delay_us": [0],
        "instance_count": [1, 2],
        "intra_op_threads": [1],
    },
}


def of_file(folder: Path, **sections: Mapping[str, Any]) -> Space:
    """`CONTENT`, with keys of its sections replaced, read as a space file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "space.yaml"
    content = {
        **CONTENT,
        **{name: {**CONTENT.get(name, {}), **own} for name, own in sections.items()},
    }
    YAML(typ="safe").dump(content, path)
    return load_space(path, {PRICE.instance_type: PRICE}, HARDWARE)


def configs(space: SearchSpace) -> list[ServingConfig]:
    """The four points: fp32 with one instance and with two, then int8."""
    return [space.config(space.at(row)) for row in range(len(space))]


@dataclass
class WholeStudy:
    """A study of `CONTENT`'s four configurations in a folder of its own.

    Attributes:
        capacities: requests/s of the trials, by configuration; 0 is infeasible.
        confirmed: requests/s of each round, by configuration.
        spread: half of the interval of each trial's capacity, relative.
        pace: change that the summary tells; False where there is no summary.
    """

    root: Path
    capacities: Mapping[int, float]
    confirmed: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    machine: Machine = MACHINE
    spread: float = 0.02
    pace: float | bool | None = False
    origin: str | None = None

    def written(self) -> StudyDirectory:
        """The study as a run leaves it."""
        space = of_file(self.root, **self.sections)
        directory = StudyDirectory(self.root)
        searched = SearchedSpace(
            self.root.name, space.search_space, space.workload, space.price, space.demand
        )
        write_searched(directory, searched)
        begun = {"space": space.content, "machine": self.machine.to_json()}
        write_json(directory.space, begun)
        every = configs(space.search_space)
        for number, (which, capacity) in enumerate(self.capacities.items()):
            directory.trials.write(self._trial(number, every[which], capacity))
        rounds = [(c, rate) for c, rates in self.confirmed.items() for rate in rates]
        for number, (which, rate) in enumerate(rounds):
            directory.confirmations.write(record_of(number, every[which], ok(rate, 60.0)))
        if self.pace is not False:
            trials = directory.trials.read_all()
            best = next(iter(stored_decision(directory, trials.values()).confirmed), None)
            summary = StudySummary(
                study=self.root.name,
                ended="the budget is used up",
                trials={"ok": len(self.capacities)},
                best=entry(best.candidate) if best is not None else None,
                pace=MachineDrift(largest_change=self.pace),
            )
            write_summary(directory, summary)
        return directory

    def _trial(self, number: int, config: ServingConfig, capacity: float) -> TrialRecord:
        if capacity == 0:
            return record_of(number, config, infeasible(80.0))
        record = record_of(number, config, ok(capacity))
        assert record.measurement is not None
        factor = record.measurement.load_factor
        measurement = replace(
            record.measurement,
            levels=(*record.measurement.levels, level(0.5 * factor, 20.0)),
            load_factor_low=(1 - self.spread) * factor,
            load_factor_high=(1 + self.spread) * factor,
        )
        return replace(record, measurement=measurement, origin=self.origin)
