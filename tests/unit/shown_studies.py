"""Studies that keep for the dashboard what a run keeps: files of made-up trials."""

from __future__ import annotations

from pathlib import Path

from optimizer.configuration.serving_config import ServingConfig
from optimizer.files.shipped import shipped
from optimizer.measurement.evaluation import Evaluation
from optimizer.study.dashboard.trial_files import TrialFiles
from optimizer.study.events import Watcher
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.searched_space import SearchedSpace
from optimizer.triton.session import ModelFiles, config_texts
from optimizer.workload.streams import OutputTensor
from tests.unit.studies import (
    DEMAND,
    MACHINE,
    PRICE,
    FakeEvaluator,
    Search,
    begin_study,
    capacity_of,
    failed,
    four_points,
    infeasible,
    ok,
)
from tests.unit.tables import WORKLOAD


def texts_of(config: ServingConfig) -> dict[str, str]:
    """config.pbtxt as a real run writes it."""
    (stream,) = WORKLOAD.streams
    output = OutputTensor("output", "FP32", (-1, 128))
    files = {m.name: ModelFiles(Path(), stream.payloads, (output,)) for m in config.models}
    return config_texts(config, files, shipped("model_repository_templates"))


def one_of_each(config: ServingConfig) -> Evaluation:
    """INT8 on two instances fails, on one it misses the limits; FP32 meets them."""
    (model,) = config.models
    if model.artifact.precision == "fp32":
        return ok(capacity_of(config))
    return failed("it broke | <b>") if model.instance_count == 2 else infeasible(900.0)


def shown_search(results: Path) -> Search:
    """A search of four points, of which one fails and one is outside the limits."""
    name = "test"  # As `open_study` has it.
    search = Search(results / name, four_points(), FakeEvaluator(one_of_each))
    searched = SearchedSpace(name, search.space, WORKLOAD, PRICE, DEMAND)
    begin_study(search.directory, searched, MACHINE)

    def files(study: OptunaStudy) -> Watcher:
        study.name_constraints(search.context.limit_names)
        return TrialFiles(study, search.directory, texts_of, search.events.append)

    search.watcher_of_study = files
    return search
