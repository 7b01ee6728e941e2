"""What `test_added_parameter` runs on a copy of the package with one more parameter.

Writes as JSON where the parameter `fake_pinned_memory` shows up.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.named_parameters import Parameter
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.export.bundle.commented_config import commented, origins_in
from optimizer.files.shipped import shipped
from optimizer.report.study_frames import trials_frame
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.simulator.execution_layout import execution_layout
from optimizer.space_file.chosen_point import only_point
from optimizer.space_file.parameter_schema import ParametersSection, with_defaults
from optimizer.space_file.schema import json_schema
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace, read_searched, write_searched
from optimizer.triton.model_config import differences, model_config
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, TensorSpec, Workload
from tests.unit.studies import (
    DEMAND,
    HARDWARE,
    PRICE,
    FakeEvaluator,
    Search,
    as_fast_as_it_is,
)
from tests.unit.test_model_config import OUTPUT, TEMPLATE

FAKE = "fake_pinned_memory"
IDS = TensorSpec("ids", "INT64", (None,), 0, 9)
PAYLOADS = Payloads((IDS,), LengthDistribution((16,), (1.0,)))
STREAM = Stream("bert", "bert", "poisson", PAYLOADS, LatencyLimit(95, 100), 500.0)


def space_with(**listed: Any) -> SearchSpace:
    """A space of two batch sizes, as a space file that lists the parameters has it."""
    listed = {"runtime": ["openvino"], "batching": True, "max_batch_size": [4, 8], **listed}
    parameters = ParametersSection.model_validate(listed).to_values("bert")
    return SearchSpace(parameters, HARDWARE)


def message(config: ServingConfig) -> model_config_pb2.ModelConfig:
    return model_config(config.models[0], PAYLOADS, [OUTPUT], TEMPLATE)


def searched(folder: Path) -> dict[str, Any]:
    """A study that is left after two trials and goes on as a new process."""
    space = space_with(**{FAKE: [True, False]})
    evaluator = FakeEvaluator(as_fast_as_it_is)
    Search(folder, space, evaluator).run(2)
    search = Search(folder, space, evaluator)
    search.run(4)
    study, history = search.opened()
    with study:
        records = list(history.records)
    off = next(r.config for r in records if r.config.models[0].parameters)
    [(path, _)] = off.models[0].parameters
    on = replace(off.models[0], parameters=((path, "true"),))
    frame = trials_frame(records, space)
    return {
        "measured": len(evaluator.evaluated),
        "positions": sorted(space.row_of[p] for r in records if (p := space.position_of(r.config))),
        "proposed": sorted(str(dict(r.params)[f"bert.{FAKE}"]) for r in records),
        "column": sorted(map(str, frame[FAKE])),
        "described": describe(off),
        "exported": commented(message(off), off.models[0], origins_in(space)),
        "differences": differences(message(off), message(replace(off, models=(on,)))),
    }


def featured() -> dict[str, Any]:
    """Whether the surrogate and the simulator tell the two values apart."""
    space = space_with(max_batch_size=8, **{FAKE: [True, False]})
    features = PointFeatures.of(space)
    layouts = {
        execution_layout(config.models[0], config.server)
        for config in (space.config(space.at(row)) for row in range(len(space)))
    }
    return {
        "points": len(space),
        "layouts": len(set(features.layouts.tolist())),
        "categorical": features.categorical.tolist(),
        "simulated": len(layouts),
    }


def older(folder: Path) -> dict[str, Any]:
    """A study that was begun before there was the parameter, read now."""
    space = space_with()
    before = SearchSpace(
        tuple(Parameter(p.model, p.name, p.values) for p in space.parameters if p.name != FAKE),
        HARDWARE,
    )
    directory = StudyDirectory(folder)
    write_searched(directory, SearchedSpace("old", before, Workload((STREAM,)), PRICE, DEMAND))
    read = read_searched(directory).search_space
    content = {"parameters": {"runtime": ["openvino"]}, "models": {"bert": {"parameters": None}}}
    return {
        "stored": FAKE in directory.searched.read_text(),
        "same": read.parameters == space.parameters,
        "content": with_defaults(content)["parameters"][FAKE],
    }


def main(folder: Path) -> None:
    for name in ("study", "older"):
        (folder / name).mkdir()
    space = space_with(**{FAKE: [True, False]})
    baseline = space.config(space.baseline)
    plain = space_with()
    chosen = only_point(space, {FAKE: "false"})
    section = json_schema()["$defs"]["ParametersSection"]["properties"]
    sys.stdout.write(
        json.dumps(
            {
                "package": str(shipped("model_repository_templates").parent),
                "schema": section[FAKE],
                "baseline": list(baseline.models[0].parameters),
                "same as without": baseline.digest == plain.config(plain.baseline).digest,
                "set": [list(each) for each in chosen.config(chosen.baseline).models[0].parameters],
                "search": searched(folder / "study"),
                "features": featured(),
                "older": older(folder / "older"),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
