from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.serving_config import Batching, describe
from optimizer.errors import SpaceFileError, UsageError
from optimizer.files.arrival_trace import read_trace
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import shipped_prices
from optimizer.measurement.cost import Demand, Price
from optimizer.space_file.chosen_point import fixed_at, only_point
from optimizer.space_file.reader import Budget, MeasurementSettings, Space, load_space
from optimizer.space_file.schema import json_schema
from optimizer.workload.arrivals import Bursts
from optimizer.workload.model_spec import (
    AccuracyLimits,
    DataSet,
    OnnxSource,
    OutputLimits,
    TransformersSource,
)
from optimizer.workload.request_sizes import Dimension, LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, TensorSpec
from optimizer.workload.transport import Transport
from tests.unit.studies import small_space

GOLDEN = Path(__file__).parents[1] / "golden"
LISTED = Price("listed.large", 0.5, source="a list", as_of="2026-01-01")
PRICES = {"listed.large": LISTED}
CORES = 2
HARDWARE = Hardware(CORES, 24_000)

# The line numbers in this file's tests count from its first line.
GOOD = """\
study: my-study
models:
  bert:
    source:
      class: BertForSequenceClassification
      config: {vocab_size: 100, max_position_embeddings: 64}
    inputs:
      input_ids: {minimum: 0, maximum: 99}
    lengths: {fixed: 32}
price: {instance_type: listed.large}
parameters:
  runtime: [pytorch, openvino]
  precision: [fp32, int8]
  max_batch_size: [4, 8]
"""
SOURCE = """\
      class: BertForSequenceClassification
      config: {vocab_size: 100, max_position_embeddings: 64}
"""


ONNX = ((SOURCE, "      onnx: model.onnx\n"), ("[pytorch, openvino]", "openvino"))
"""Edits of the good file, which then has an ONNX file."""


def load(folder: Path, text: str, cores: int = CORES) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return load_space(path, PRICES, Hardware(cores, 24_000))


def changed(*edits: tuple[str, str]) -> str:
    text = GOOD
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} must stand once in the good file"
        text = text.replace(old, new)
    return text


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(SpaceFileError) as caught:
        load(folder, text)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_the_smallest_file_and_its_defaults(tmp_path: Path) -> None:
    space = load(tmp_path, GOOD)
    assert space.study == "my-study"
    assert space.price == LISTED
    assert space.demand == Demand(500.0, 0.0)
    assert space.budget == Budget(60, 8 * 3600.0)
    assert space.measurement == MeasurementSettings(8.0, 10.0, 1.0, None, 5000)
    (stream,) = space.workload.streams
    assert (stream.name, stream.target, stream.arrivals) == ("bert", "bert", "poisson")
    assert stream.limit == LatencyLimit(95, 500)
    assert stream.payloads == space.models[0].payloads
    tensors = (TensorSpec("input_ids", "INT64", (None,), 0, 99, 0),)
    assert space.models[0].payloads.tensors == tensors
    assert space.models[0].payloads.lengths == LengthDistribution((32,), (1.0,))
    assert space.models[0].source == TransformersSource(
        "BertForSequenceClassification",
        config='{"max_position_embeddings": 64, "vocab_size": 100}',
    )
    assert (space.models[0].calibration, space.models[0].evaluation) == (
        DataSet(None, 64, 1),
        DataSet(None, 64, 2),
    )
    assert space.models[0].accuracy == AccuracyLimits(0.99, 0.99, None)
    assert {p.name: p.values for p in space.search_space.parameters} == {
        "runtime": ("pytorch", "openvino"),
        "precision": ("fp32", "int8"),
        "batching": (False,),
        "max_batch_size": (4, 8),
        "preferred_batch_sizes": ("none",),
        "max_queue_delay_us": (0,),
        "instance_count": (1,),
        "intra_op_threads": (1,),
        "padding": ("max",),
        "engine_profile": ("shared",),
        "cuda_graphs": (False,),
        "execution_policy": ("device_blocking",),
        "rate_limit": ("off",),
        "response_cache": (False,),
        "response_cache_mib": (64,),
        "max_queue_size": ("off",),
        "default_timeout_microseconds": ("off",),
        "timeout_action": ("reject",),
    }


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "held_out.npz", input_ids=np.zeros((4, 32), np.int64))
    space = load(
        tmp_path,
        changed(
            ("{fixed: 32}", "{weights: {64: 1, 16: 3}}\n    evaluation: {file: held_out.npz}"),
            ("{instance_type: listed.large}", "{instance_type: mine, usd_per_hour: 2,\n"
             "        source: our contract, as_of: 2026-02-03}"),
            ("[4, 8]", "[8, 4]\n  padding: [max, [64, 16]]\n  batching: true\n"
             "  preferred_batch_sizes: [none, [8, 2]]\n"
             "traffic: {demand_per_second: 20.5, headroom: 0.2}\n"
             "limit: {percentile: 99, latency_ms: 80}\n"
             "conditions: [max_batch_size == 8]\n"
             "measurement: {check_seconds: 90m, warmup_seconds: 0.5}\n"
             "budget: {trials: 3, wall_clock: 1.5h, regret_percent: 3}"),
        ),
    )  # fmt: skip
    assert space.price == Price("mine", 2.0, "our contract", "2026-02-03")
    assert space.demand == Demand(20.5, 0.2)
    assert space.workload.streams[0].limit == LatencyLimit(99, 80)
    assert space.budget == Budget(3, 5400.0, 3.0)
    assert space.measurement == MeasurementSettings(8.0, 5400.0, 0.5, None, 5000)
    assert space.models[0].payloads.lengths == LengthDistribution((16, 64), (3.0, 1.0))
    assert space.models[0].evaluation == DataSet(tmp_path / "held_out.npz", 64, 0)
    assert space.models[0].accuracy_evidence == "dataset"
    values = {p.name: p.values for p in space.search_space.parameters}
    assert values["max_batch_size"] == (4, 8)
    assert values["padding"] == ("max", (16, 64))
    assert values["preferred_batch_sizes"] == ("none", (2, 8))
    assert space.search_space.limits.conditions == ("max_batch_size == 8",)


def test_a_machine_that_is_owned_costs_its_purchase_and_its_power(tmp_path: Path) -> None:
    owned = "purchase: {usd: 8766, lifetime_years: 4, watts: 500, usd_per_kwh: 0.2}"
    text = changed((PRICE, f"{{instance_type: mine, {owned}, as_of: 2026-02-03}}"))
    assert load(tmp_path, text).price == Price(
        "mine",
        pytest.approx(0.35),  # type: ignore[arg-type]
        "bought, over 4 years, and power",
        "2026-02-03",
        rate="owned",
    )


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    text = changed(*ONNX)
    assert load(tmp_path, text).models[0].source == OnnxSource(tmp_path / "model.onnx")


def test_a_local_checkpoint_is_a_path_and_another_a_name(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    local = changed((SOURCE, "      class: Bert\n      checkpoint: ./trained\n"))
    hub = changed((SOURCE, "      class: Bert\n      checkpoint: someone/bert\n"))
    assert load(tmp_path, local).models[0].source == TransformersSource(
        "Bert", str(tmp_path / "trained")
    )
    assert load(tmp_path, hub).models[0].source == TransformersSource("Bert", "someone/bert")


def test_a_checkpoints_own_configuration_bounds_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.json").write_text('{"vocab_size": 50, "model_type": "bert"}')
    text = changed((SOURCE, "      class: Bert\n      checkpoint: ./trained\n"))
    assert mistakes(tmp_path, text) == [
        "line 8: models.bert.inputs.input_ids.maximum: "
        "must be below the model's vocab_size (50), got 99.0"
    ]


@pytest.mark.parametrize("wrong", ["[]", '{"vocab_size": "fifty"}', '"text"'])
def test_a_strange_checkpoint_configuration_bounds_nothing(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.json").write_text(wrong)
    load(tmp_path, changed((SOURCE, "      class: Bert\n      checkpoint: ./trained\n")))


def test_the_percentile_of_calibration(tmp_path: Path) -> None:
    lengths = "    lengths: {fixed: 32}\n"

    def with_percentile(value: str) -> str:
        return changed((lengths, f"{lengths}    calibration: {{seed: 1, percentile: {value}}}\n"))

    usual = load(tmp_path, GOOD)
    assert usual.models[0].calibration_percentile == 99.999
    # Studies that were begun before this key existed are still resumed.
    assert "percentile" not in usual.content["models"]["bert"]["calibration"]
    assert load(tmp_path, with_percentile("99.999")).content == usual.content
    whole = load(tmp_path, with_percentile("100"))
    assert whole.models[0].calibration_percentile == 100
    assert whole.content["models"]["bert"]["calibration"]["percentile"] == 100
    for value in ("50", "100.1", ".nan"):
        [mistake] = mistakes(tmp_path, with_percentile(value))
        assert "models.bert.calibration.percentile" in mistake


def test_every_mistake_at_once() -> None:
    with pytest.raises(SpaceFileError) as caught:
        load_space(GOLDEN / "space_mistakes.yaml", PRICES, HARDWARE)
    text = str(caught.value).replace(str(GOLDEN), "{folder}")
    golden = (GOLDEN / "space_mistakes.txt").read_text()
    assert text + "\n" == "{folder}/" + golden


# An edit of the good file -> the mistake that it makes.
RANGE = "minimum: 0, maximum: 99"
INPUTS = "    inputs:\n      input_ids: {" + RANGE + "}\n"
LENGTHS = "lengths: {fixed: 32}"
BATCHES = "max_batch_size: [4, 8]"
PRICE = "{instance_type: listed.large}"
ONE_MISTAKE = [
    (
        PRICE,
        "{instance_type: mine, usd_per_hour: 1, purchase: {usd: 9, watts: 5, usd_per_kwh: 0.2}}",
        "line 10: price.purchase: must not be given beside usd_per_hour, got 9.0",
    ),
    (
        LENGTHS,
        "lengths: {fixed: 32, typo: 1}",
        "line 9: models.bert.lengths.typo: unknown key",
    ),
    (
        "    source:\n" + SOURCE,
        "",
        "line 3: models.bert.source: is required",
    ),
    (
        LENGTHS,
        "lengths: {fixed: 65}",
        "line 9: models.bert.lengths: "
        "must not be above the model's max_position_embeddings (64), got 65",
    ),
    (
        LENGTHS,
        "lengths: {weights: {16: 1, 65: 1}}",
        "line 9: models.bert.lengths: "
        "must not be above the model's max_position_embeddings (64), got 65",
    ),
    (
        LENGTHS,
        "lengths: {uniform: [9, 5]}",
        "line 9: models.bert.lengths.uniform: must be [shortest, longest], got (9, 5)",
    ),
    (
        LENGTHS,
        "lengths: {uniform: [1, 2000000]}",
        "line 9: models.bert.lengths.uniform.1: "
        "must be less than or equal to 1000000, got 2000000",
    ),
    (
        LENGTHS,
        "lengths: {fixed: 8, uniform: [5, 9]}",
        "line 9: models.bert.lengths: must have exactly one of fixed, uniform, weights, "
        "got ['fixed', 'uniform']",
    ),
    (
        LENGTHS,
        "lengths: {weights: {}}",
        "line 9: models.bert.lengths: must have exactly one of fixed, uniform, weights, got []",
    ),
    (
        LENGTHS,
        "lengths: {weights: {short: 1}}",
        "line 9: models.bert.lengths.weights.short: must be a valid integer, got 'short'",
    ),
    (
        LENGTHS,
        "lengths: {weights: {16: 0}}",
        "line 9: models.bert.lengths.weights.16: must be greater than 0, got 0",
    ),
    (
        LENGTHS,
        'lengths: {fixed: "4"}',
        "line 9: models.bert.lengths.fixed: must be a valid integer, got '4'",
    ),
    (
        LENGTHS,
        "lengths: {fixed: true}",
        "line 9: models.bert.lengths.fixed: must be a valid integer, got True",
    ),
    (
        "maximum: 99",
        "maximum: 100",
        "line 8: models.bert.inputs.input_ids.maximum: "
        "must be below the model's vocab_size (100), got 100.0",
    ),
    (
        "minimum: 0",
        "minimum: 100",
        "line 8: models.bert.inputs.input_ids.minimum: must not be above maximum (99), got 100.0",
    ),
    (
        "maximum: 99",
        "maximum: .nan",
        "line 8: models.bert.inputs.input_ids.maximum: must be a finite number, got nan",
    ),
    (
        "maximum: 99",
        "maximum: true",
        "line 8: models.bert.inputs.input_ids.maximum: must be a valid number, got True",
    ),
    (
        "maximum: 99",
        "maximum: 99, shape: [lenght]",
        "line 8: models.bert.inputs.input_ids.shape.0: "
        "must be a size, or a dimension under `lengths` or `dimensions`; did you mean length?, "
        "got 'lenght'",
    ),
    (
        "vocab_size: 100",
        "vocab_size: 100, eps: .inf",
        "line 6: models.bert.source.config: numbers must be finite, "
        "got {'vocab_size': 100, 'eps': inf, 'max_position_embeddings': 64}",
    ),
    (
        "vocab_size: 100",
        "vocab_size: 2026-01-01",
        "line 6: models.bert.source.config.vocab_size: "
        "input was not a valid JSON value, got datetime.date(2026, 1, 1)",
    ),
    (
        SOURCE,
        "      onnx: nowhere.onnx\n",
        "line 5: models.bert.source.onnx: "
        "file must exist, looked at {folder}/nowhere.onnx, got 'nowhere.onnx'",
    ),
    (
        SOURCE,
        "      class: Bert\n      checkpoint: ./nowhere\n",
        "line 6: models.bert.source.checkpoint: "
        "file must exist, looked at {folder}/nowhere, got './nowhere'",
    ),
    (
        SOURCE,
        SOURCE + "      checkpoint: someone/bert\n",
        "line 4: models.bert.source: must have exactly one of config, checkpoint, onnx, "
        "repository, got ['config', 'checkpoint']",
    ),
    (
        "      class: BertForSequenceClassification\n",
        "",
        "line 4: models.bert.source.class: "
        "must be given with config or checkpoint, and only with one of them, got None",
    ),
    (
        "class: BertForSequenceClassification",
        "class_name: BertForSequenceClassification",
        "line 5: models.bert.source.class_name: unknown key; did you mean class?",
    ),
    (
        SOURCE,
        SOURCE + "      seed: true\n",
        "line 7: models.bert.source.seed: must be a valid integer, got True",
    ),
    (
        "study: my-study",
        "study: ../elsewhere",
        "line 1: study: must match pattern '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$', got '../elsewhere'",
    ),
    (
        "bert:",
        "'my bert':",
        "line 3: models.my bert: "
        "must match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$', got 'my bert'",
    ),
    (
        PRICE,
        "{instance_type: nowhere}",
        "line 10: price.instance_type: "
        "must be listed (listed.large) if usd_per_hour is not given, got 'nowhere'",
    ),
    (
        PRICE,
        "{instance_type: mine, usd_per_hour: 0}",
        "line 10: price.usd_per_hour: must be greater than 0, got 0",
    ),
    (
        PRICE,
        "{instance_type: mine, usd_per_hour: '1'}",
        "line 10: price.usd_per_hour: must be a valid number, got '1'",
    ),
    (
        BATCHES,
        "max_batch_size: [4, 4]",
        "line 14: parameters.max_batch_size: "
        "values must be distinct, 4 is listed twice, got [4, 4]",
    ),
    (
        BATCHES,
        "max_batch_size: []",
        "line 14: parameters.max_batch_size: "
        "must have at least 1 item after validation, not 0, got []",
    ),
    (
        BATCHES,
        BATCHES + "\n  max_queue_delay_us: -1",
        "line 15: parameters.max_queue_delay_us: must be greater than or equal to 0, got -1",
    ),
    (
        BATCHES,
        BATCHES + "\n  batching: [yes]",
        "line 15: parameters.batching.0: must be a valid boolean, got 'yes'",
    ),
    (
        BATCHES,
        BATCHES + "\n  padding: [max, [16, 33]]",
        "line 15: parameters.padding.1: must not be above the longest length (32), got [16, 33]",
    ),
    (
        BATCHES,
        BATCHES + "\n  padding: {a: 1}",
        "line 15: parameters.padding: must be 'max', or must be a valid list, got {'a': 1}",
    ),
    (
        BATCHES,
        BATCHES + "\nbudget: {wall_clock: 8 hours}",
        "line 15: budget.wall_clock: "
        "must be a number above 0 and s, m or h, such as 8h, got '8 hours'",
    ),
    (
        BATCHES,
        BATCHES + "\nbudget: {wall_clock: true}",
        "line 15: budget.wall_clock: must be a valid number, got True",
    ),
    (
        BATCHES,
        BATCHES + "\nconditions: instance_count > 1",
        "line 15: conditions: must be a valid list, got 'instance_count > 1'",
    ),
    (
        BATCHES,
        BATCHES + "\nconditions: [instance_count > 5]",
        "line 11: parameters: no combination of values is left by the rule: instance_count > 5",
    ),
    (
        "[pytorch, openvino]\n  precision: [fp32, int8]",
        "[pytorch]\n  precision: [int8]",
        "line 11: parameters: no combination of values is left by the rule: "
        "the runtime serves the precision",
    ),
    (
        BATCHES,
        BATCHES + "\n  max_queue_delay_us: [" + ", ".join(map(str, range(2000))) + "]"
        "\n  instance_count: [" + ", ".join(map(str, range(1, 200))) + "]",
        "line 11: parameters: must have at most 1,000,000 combinations, got 3,184,000",
    ),
    (
        BATCHES,
        BATCHES + "\ntraffic: {arrivals: bursts}",
        "line 15: traffic.arrivals: must be 'poisson' or 'constant', got 'bursts'",
    ),
    (
        BATCHES,
        BATCHES + "\ntraffic: {arrivals: {trace: none.csv}}",
        "line 15: traffic.arrivals.trace: must be readable (No such file or directory), "
        "got 'none.csv'",
    ),
    (
        BATCHES,
        BATCHES + "\ntraffic: {arrivals: {bursts: 0.5, burst_seconds: 2s, period_seconds: 20s}}",
        "line 15: traffic.arrivals.bursts: must be greater than 1, got 0.5",
    ),
    (
        BATCHES,
        BATCHES + "\ntraffic: {arrivals: {bursts: 3, burst_seconds: 2s, period_seconds: 5s}}",
        "line 15: traffic.arrivals.period_seconds: must be at least bursts x burst_seconds, 6 s: a "
        "burst has no more requests than its period, got 5.0",
    ),
    (
        BATCHES,
        BATCHES + "\ntraffic: {arrivals: {bursts: 3, burst_seconds: 2s}}",
        "line 15: traffic.arrivals.period_seconds: is required",
    ),
    (
        BATCHES,
        BATCHES + "\ntraffic: {transport: {encoding: json}}",
        "line 15: traffic.transport.encoding: json needs protocol http and no shared memory, "
        "got 'json'",
    ),
    (
        BATCHES,
        BATCHES + "\n  batching: true\ntraffic: {batch_size: 16}",
        "line 11: parameters: no combination of values is left by the rule: "
        "max_batch_size is at least traffic.batch_size (16)",
    ),
]  # fmt: skip


def test_one_point_of_a_space_is_its_baseline_with_what_is_set(tmp_path: Path) -> None:
    space = load(tmp_path, changed((BATCHES, BATCHES + "\nconditions: [max_batch_size < 8]")))
    settings = {"precision": "bf16", "bert.batching": "true", "max_batch_size": "16",
                "preferred_batch_sizes": "[4, 8]"}  # fmt: skip
    fixed = fixed_at(space, {**settings, "runtime": "openvino"})
    [row] = fixed.search_space.points
    [model] = fixed.search_space.config(tuple(row)).models
    assert (model.artifact.runtime, model.artifact.precision) == ("openvino", "bf16")
    assert model.batching == Batching((4, 8), 0)
    assert model.max_batch_size == 16
    [row] = fixed_at(space, {}).search_space.points
    baseline = space.search_space.config(space.search_space.baseline)
    assert fixed_at(space, {}).search_space.config(tuple(row)) == baseline


def test_everything_wrong_with_what_is_set_is_said_at_once(tmp_path: Path) -> None:
    space = load(tmp_path, GOOD)
    with pytest.raises(UsageError) as caught:
        fixed_at(space, {"precision": "int9", "colour": "red", "instance_count": "many"})
    first, *lines = str(caught.value).splitlines()
    assert first == "--set:"
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "colour",
        "instance_count",
        "precision",
    ]
    with pytest.raises(UsageError, match=r"cores; with instance_count=9$"):
        fixed_at(space, {"instance_count": "9"})


def test_what_is_not_set_goes_with_what_is() -> None:
    path = shipped("space_template.yaml")
    space = load_space(path, shipped_prices(), HARDWARE)
    [baseline] = space.search_space.config(space.search_space.baseline).models
    assert baseline.artifact.runtime == "pytorch", "which serves no INT8"
    fixed = fixed_at(space, {"precision": "int8", "batching": "true", "max_batch_size": "32"})
    [row] = fixed.search_space.points
    [model] = fixed.search_space.config(tuple(row)).models
    assert model.artifact.precision == "int8"
    assert model.artifact.runtime != "pytorch"
    assert model.batching is not None
    assert model.max_batch_size == 32
    assert model.instance_count == baseline.instance_count


ANY_INPUT = """\
    inputs:
      image: {data_type: UINT8, shape: [3, height, width], minimum: 0, maximum: 255}
      texts: {data_type: BYTES, shape: [1], values: [yes please, "12"]}
      mask: {data_type: BOOL, shape: [width]}
      rate: {data_type: INT32, shape: [], value: 16000}
      last: {data_type: UINT64, shape: [area], values: [0, 9223372036854775807]}
    dimensions:
      height: {uniform: [2, 4]}
      width: {weights: {10: 1, 20: 3}}
      area: {of: width, times: 2, plus: 5}
    batched: false
    outputs: [scores, label]
    accuracy:
      min_cosine: 0.9
      outputs: {label: {min_argmax_agreement: 0.5, max_abs_error: 1}}
"""


def test_inputs_of_any_type_and_free_dimensions(tmp_path: Path) -> None:
    text = changed(("    lengths: {fixed: 32}\n", ""), (INPUTS, ANY_INPUT), *ONNX)
    (tmp_path / "model.onnx").touch()
    space = load(tmp_path, text)
    [model] = space.models
    assert model.payloads == Payloads(
        (
            TensorSpec("image", "UINT8", (3, "height", "width"), 0, 255),
            TensorSpec("texts", "BYTES", (1,), choices=("yes please", "12")),
            TensorSpec("mask", "BOOL", ("width",), choices=(False, True)),
            TensorSpec("rate", "INT32", (), choices=(16000,)),
            TensorSpec("last", "UINT64", ("area",), choices=(0, 2**63 - 1)),
        ),
        dimensions=(
            Dimension("height", LengthDistribution((2, 3, 4), (1, 1, 1))),
            Dimension("width", LengthDistribution((10, 20), (1, 3))),
            Dimension("area", None, "width", times=2, plus=5),
        ),
        batched=False,
    )
    assert model.outputs == ("scores", "label")
    own = OutputLimits(0.5, 0.99, 1)
    assert model.accuracy == AccuracyLimits(0.99, 0.9, outputs=(("label", own),))
    assert model.accuracy.of("label") == own
    assert model.accuracy.of("scores") == model.accuracy
    assert refused(SCHEMA, written(text)) == []
    [request] = model.payloads.sample(1, np.random.default_rng(0))
    assert request["last"].shape == (2 * len(request["mask"]) + 5,)
    # The content of a study is a space file again, but for the name of the study.
    stored = tmp_path / "stored.json"
    stored.write_text(json.dumps({"study": "again", **space.content}))
    again = load_space(stored, PRICES, HARDWARE)
    assert (again.content, again.models) == (space.content, space.models)


def test_what_is_not_given_is_not_in_the_content_of_a_study(tmp_path: Path) -> None:
    """Studies that were begun before these keys existed are still resumed."""
    content = load(tmp_path, GOOD).content["models"]["bert"]
    assert not content.keys() & {"dimensions", "batched", "outputs"}
    assert content["output"] == "logits"
    assert not content["inputs"]["input_ids"].keys() & {"value", "values"}
    assert "outputs" not in content["accuracy"]


def test_without_an_output_all_are_served(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).models[0].outputs == ()
    one = changed((LENGTHS, LENGTHS + "\n    output: scores"))
    assert load(tmp_path, one).models[0].outputs == ("scores",)


def test_traffic_of_client_batches_from_a_trace_over_http(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds\n0\n1\n3\n")
    text = BATCHES + (
        "\n  batching: [false, true]\ntraffic:\n  arrivals: {trace: trace.csv}\n  batch_size: 4\n"
        "  transport: {protocol: http, shared_memory: true}\n"
    )
    space = load(tmp_path, changed((BATCHES, text)))
    (stream,) = space.workload.streams
    assert stream.arrivals == read_trace(trace)
    assert stream.batch_size == space.demand.inferences_per_request == 4
    assert space.workload.transport == Transport("http", "binary", shared_memory=True)
    sizes = {
        (model.max_batch_size, model.batching is not None)
        for row in space.search_space.points
        for model in space.search_space.config(tuple(row)).models
    }
    assert sizes == {(4, False), (8, True)}, "a server must take a whole request"
    before = space.content
    trace.write_text("seconds\n0\n2\n3\n")
    assert load(tmp_path, changed((BATCHES, text))).content != before


def test_traffic_in_bursts(tmp_path: Path) -> None:
    arrivals = "{bursts: 3, burst_seconds: 0.5, period_seconds: 0.1m}"
    text = f"{BATCHES}\ntraffic:\n  arrivals: {arrivals}\n"
    (stream,) = load(tmp_path, changed((BATCHES, text))).workload.streams
    assert stream.arrivals == Bursts(times_mean=3.0, burst_seconds=0.5, period_seconds=6.0)


@pytest.mark.parametrize(("old", "new", "message"), ONE_MISTAKE)
def test_one_mistake(tmp_path: Path, old: str, new: str, message: str) -> None:
    found = mistakes(tmp_path, changed((old, new)))
    assert found == [message.replace("{folder}", str(tmp_path))]


# What stands in place of the bounds of an input -> the mistake that it makes.
ONE_KIND = "must have exactly one of minimum with maximum, value, values, pattern, words"
INPUT_MISTAKES = [
    ("minimum: 0", ": must have both minimum and maximum, got ['minimum']"),
    ("data_type: FP32", f": {ONE_KIND}, or the model a file of `requests`, got []"),
    (f"{RANGE}, value: 1", f": {ONE_KIND}, got ['minimum', 'maximum', 'value']"),
    ("value: 1, values: [1]", f": {ONE_KIND}, got ['value', 'values']"),
    ("values: []", ".values: must have at least 1 item after validation, not 0, got []"),
    ("value: one", ".value: must be a number, got 'one'"),
    ("values: [1, true]", ".values.1: must be a number, got True"),
    (
        "data_type: INT16, values: [1, 1.5]",
        ".values.1: must be a whole number from -32768 to 32767 as int16, got 1.5",
    ),
    (
        "data_type: UINT8, minimum: 0, maximum: 256",
        ".maximum: must be a whole number from 0 to 255 as uint8, got 256.0",
    ),
    (
        "data_type: UINT64, value: -1",
        ".value: must be a whole number from 0 to 18446744073709551615 as uint64, got -1",
    ),
    (
        "data_type: BYTES, minimum: 0, maximum: 9",
        ".minimum: BYTES needs value or values, got 0.0",
    ),
    ("data_type: BYTES, values: [one, 2]", ".values.1: must be a text, got 2"),
    ("data_type: BOOL, value: 1", ".value: must be true or false, got 1"),
    (
        f"{RANGE}, shape: [tokens]",
        ".shape.0: must be a size, or a dimension under `lengths` or `dimensions`, got 'tokens'",
    ),
    (
        f"{RANGE}, shape: [0]",
        ".shape.0: must be greater than or equal to 1, or must be a valid string, got 0",
    ),
]


@pytest.mark.parametrize(("given", "mistake"), INPUT_MISTAKES)
def test_one_mistake_of_an_input(tmp_path: Path, given: str, mistake: str) -> None:
    text = changed((RANGE, given))
    assert mistakes(tmp_path, text) == [f"line 8: models.bert.inputs.input_ids{mistake}"]


def test_the_length_needs_its_sizes(tmp_path: Path) -> None:
    two = RANGE + "}\n      mask: {minimum: 1, maximum: 1, shape: [2, length]"
    text = changed((f"    {LENGTHS}\n", ""), (RANGE, two))
    rule = "is required by the dimension length of input_ids, mask"
    assert mistakes(tmp_path, text) == [f"line 3: models.bert.lengths: {rule}, got None"]


def test_the_first_dimension_follows_no_other(tmp_path: Path) -> None:
    text = changed((LENGTHS, "dimensions: {a: {of: b}}"), (RANGE, f"{RANGE}, shape: [a]"))
    assert mistakes(tmp_path, text) == [
        "line 9: models.bert.dimensions.a.of: must be a dimension before it, got 'b'"
    ]


# A further key of a model -> the mistake that it makes.
MODEL_MISTAKES = [
    (
        "dimensions: {width: {}}",
        "dimensions.width: must have exactly one of fixed, uniform, weights, got []",
    ),
    (
        "dimensions: {my width: {fixed: 3}}",
        "dimensions.my width: must match pattern '^[A-Za-z_][A-Za-z0-9_]{0,63}$', got 'my width'",
    ),
    (
        "dimensions: {length: {fixed: 3}}",
        "dimensions.length: is given by `lengths`, got 'length'",
    ),
    (
        "dimensions: {width: {of: height}, height: {fixed: 3}}",
        "dimensions.width.of: must be a dimension before it, one of length, got 'height'",
    ),
    (
        "dimensions: {width: {of: length, fixed: 3}}",
        "dimensions.width.of: must not be given beside fixed, uniform or weights, got 'length'",
    ),
    (
        "dimensions: {width: {fixed: 3, times: 2}}",
        "dimensions.width.of: is needed with times or plus, got None",
    ),
    (
        "dimensions: {width: {of: length, times: 0}}",
        "dimensions.width.times: must be greater than or equal to 1, got 0",
    ),
    (
        "dimensions: {width: {of: length, plus: -1}}",
        "dimensions.width.plus: must be greater than or equal to 0, got -1",
    ),
    ("batched: 1", "batched: must be a valid boolean, got 1"),
    (
        "batched: false",
        "batched: must be true: tensors of a transformers class have a batch axis, got False",
    ),
    (
        "output: y\n    outputs: [y]",
        "output: must not be given beside outputs, got 'y'",
    ),
    (
        "outputs: [a/b]",
        r"outputs.0: must match pattern '^[^\x00-\x1f\x7f/]{1,200}$', got 'a/b'",
    ),
    (
        "accuracy: {outputs: {y: {min_cosine: 2}}}",
        "accuracy.outputs.y.min_cosine: must be less than or equal to 1, got 2",
    ),
    (
        "accuracy: {outputs: {y: {metric: 2}}}",
        "accuracy.outputs.y.metric: unknown key; did you mean metrics?",
    ),
    (
        "accuracy: {int8_on_generated: true}",
        "accuracy.int8_on_generated: unknown key; did you mean int8_on_generated_data?",
    ),
]


@pytest.mark.parametrize(("given", "mistake"), MODEL_MISTAKES)
def test_one_mistake_of_a_model(tmp_path: Path, given: str, mistake: str) -> None:
    text = changed((LENGTHS, f"{LENGTHS}\n    {given}"))
    assert mistakes(tmp_path, text) == [f"line 10: models.bert.{mistake}"]


def test_an_onnx_file_has_no_pytorch(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert mistakes(tmp_path, changed((SOURCE, "      onnx: model.onnx\n"))) == [
        "line 11: parameters.runtime: pytorch needs a transformers source, "
        "models.bert is an ONNX file, got ['pytorch', 'openvino']"
    ]


def test_requests_without_a_batch_axis_have_one_inference(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    unbatched = (LENGTHS, f"{LENGTHS}\n    batched: false")
    text = changed(*ONNX, unbatched, (BATCHES, BATCHES + "\ntraffic: {batch_size: 2}"))
    assert mistakes(tmp_path, text) == [
        "line 15: traffic.batch_size: must be 1: models.bert has no batch axis (batched: false),"
        " got 2"
    ]


def test_all_wrong_conditions_are_reported_beside_other_mistakes(tmp_path: Path) -> None:
    conditions = """
conditions:
  - batching or not batching
  - batch_size > 4
  - instance_count
"""
    text = changed((BATCHES, BATCHES + conditions), ("my-study", "my study"))
    found = mistakes(tmp_path, text)
    assert len(found) == 3
    assert found[0].startswith("line 1: study: ")
    assert re.match(
        r"line 17: conditions\.1: must be a comparison of runtime, .*, cores, gpus "
        r"\(name 'batch_size' is not defined; did you mean max_batch_size\?\), "
        r"got 'batch_size > 4'$",
        found[1],
    )
    assert found[2] == (
        "line 18: conditions.2: must be true or false for every point, got 'instance_count'"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file: must contain keys and values, got None"),
        ("- study\n- models\n", "file: must contain keys and values, got ['study', 'models']"),
        ("just text", "file: must contain keys and values, got 'just text'"),
        ("a: 1\nb: c: d\n", "line 2: YAML: mapping values are not allowed here"),
        ("a: [1, 2\nb: 3\n", "line 2: YAML: expected ',' or ']', but got ':'"),
        (
            "study: a\nstudy: b\n",
            'line 2: YAML: found duplicate key "study" with value "b" (original value: "a")',
        ),
    ],
)
def test_what_is_no_space_file(tmp_path: Path, text: str, message: str) -> None:
    assert mistakes(tmp_path, text) == [message]


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"study: \xff\n")
    with pytest.raises(SpaceFileError, match="1 mistake\n  file: must be UTF-8 text"):
        load_space(path, PRICES, HARDWARE)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpaceFileError) as caught:
        load_space(tmp_path / "nowhere.yaml", PRICES, HARDWARE)
    assert str(caught.value) == (
        f"{tmp_path}/nowhere.yaml: 1 mistake\n  file: must be readable (No such file or directory)"
    )
    with pytest.raises(SpaceFileError, match=r"must be readable \(Is a directory\)"):
        load_space(tmp_path, PRICES, HARDWARE)


LENGTHS_AND = "{fixed: 32}\n    evaluation: "


def test_inputs_may_stand_in_the_file(tmp_path: Path) -> None:
    given = "{tensors: {input_ids: [[7, 8], [9]]}}"
    space = load(tmp_path, changed(("{fixed: 32}", LENGTHS_AND + given)))
    assert space.models[0].evaluation == DataSet(None, 2, 0, '{"input_ids": [[7, 8], [9]]}')
    assert space.models[0].accuracy_evidence == "dataset"
    stored = json.loads(json.dumps(space.content, allow_nan=False))
    again = load(tmp_path, changed(("{fixed: 32}", LENGTHS_AND + given[:-1] + ", samples: 2}")))
    assert again.content == stored, "a stored space reads as the same"
    one = load(tmp_path, changed(("{fixed: 32}", LENGTHS_AND + given[:-1] + ", samples: 1}")))
    assert one.models[0].evaluation.samples == 1


@pytest.mark.parametrize(
    ("section", "mistake"),
    [
        ("{tensors: {}}", "line 10: models.bert.evaluation.tensors: must have at least 1 item"),
        ("{tensors: {input_ids: 7}}", "evaluation.tensors.input_ids: must be a valid list, got 7"),
        ("{tensors: {input_ids: [[.nan]]}}", "evaluation.tensors: numbers must be finite"),
        (
            "{tensors: {input_ids: [[7]]}, file: d.jsonl}",
            "models.bert.evaluation.tensors: must not be given beside file, got 'd.jsonl'",
        ),
        (
            "{file: d.txt}",
            "evaluation.file: must be a directory or end with .npz, .jsonl, .json, got 'd.txt'",
        ),
    ],
)
def test_mistakes_of_inputs_in_the_file(tmp_path: Path, section: str, mistake: str) -> None:
    for name in ("d.jsonl", "d.txt"):
        (tmp_path / name).touch()
    [said] = mistakes(tmp_path, changed(("{fixed: 32}", LENGTHS_AND + section)))
    assert mistake in said


def test_the_content_holds_what_a_study_depends_on_and_nothing_else(tmp_path: Path) -> None:
    content = load(tmp_path, GOOD).content
    other_run = changed(("my-study", "other"), (BATCHES, BATCHES + "\nbudget: {trials: 1}"))
    said = changed((BATCHES, BATCHES + "\nlimit: {percentile: 95, latency_ms: 500}"))
    assert load(tmp_path, other_run).content == content
    assert load(tmp_path, said).content == content
    assert load(tmp_path, changed(("[4, 8]", "[4, 8, 16]"))).content != content
    assert json.loads(json.dumps(content, allow_nan=False)) == content


SHIPPED = [
    pytest.param("search_spaces/quickstart.yaml", "quickstart", id="quickstart"),
    pytest.param("space_template.yaml", "my-model", id="template"),
]


@pytest.mark.parametrize(("name", "study"), SHIPPED)
@pytest.mark.parametrize("cores", [1, 2, 8])
def test_what_is_shipped_loads_on_any_machine(name: str, study: str, cores: int) -> None:
    space = load_space(shipped(name), shipped_prices(), Hardware(cores, 24_000))
    assert space.study == study
    assert len(space.search_space) > 100
    json.dumps(space.content, allow_nan=False)


def test_the_quickstart_searches_three_runtimes_in_minutes() -> None:
    space = load_space(shipped("search_spaces/quickstart.yaml"), shipped_prices(), HARDWARE)
    runtimes = {spec.runtime for spec in space.search_space.artifacts}
    assert runtimes == {"pytorch", "onnxruntime", "openvino"}
    assert space.budget.trials >= 10
    assert space.budget.wall_clock_seconds <= 10 * 60


SCHEMA = json_schema()
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def refused(schema: Mapping[str, Any], value: Any, at: str = "") -> list[str]:
    """Places where a value breaks our JSON schema, by the few keywords that it has."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return refused(SCHEMA["$defs"][name], value, at)
    if "type" not in schema:
        anything = schema.get("anyOf") or schema.get("oneOf", [{}])
        return [] if {} in anything or any(not refused(o, value, at) for o in anything) else [at]
    wanted = TYPES[schema["type"]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        return [at]
    if isinstance(value, dict):
        return refused_keys(schema, value, at)
    if isinstance(value, list):
        items = schema.get("prefixItems") or itertools.repeat(schema["items"], len(value))
        pairs = zip(items, value, strict=True)
        return [w for n, (one, item) in enumerate(pairs) for w in refused(one, item, f"{at}.{n}")]
    fits = value in schema.get("enum", [value])
    if isinstance(value, str):
        fits = fits and re.search(schema.get("pattern", ""), value) is not None
    return [] if fits else [at]


def refused_keys(schema: Mapping[str, Any], value: dict[str, Any], at: str) -> list[str]:
    wrong = [f"{at}.{key}" for key in schema.get("required", []) if key not in value]
    known = schema.get("properties", {})
    ((_, by_pattern),) = schema.get("patternProperties", {"": None}).items()
    others = schema.get("additionalProperties", by_pattern)
    for key, each in value.items():
        if key in known:
            wrong += refused(known[key], each, f"{at}.{key}")
        elif others:
            wrong += refused(others, each, f"{at}.{key}")
        else:
            wrong.append(f"{at}.{key}")
    return wrong


def written(text: str) -> Any:
    """As an editor reads it: dates are text there."""
    document = YAML(typ="safe").load(text)
    return json.loads(json.dumps(document, default=str))


@pytest.mark.parametrize(("name", "_study"), SHIPPED)
def test_the_json_schema_takes_what_is_shipped(name: str, _study: str) -> None:
    assert refused(SCHEMA, written(shipped(name).read_text())) == []


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("study: my-study\n", "", ".study"),
        (LENGTHS, "lengths: {fixed: 32, typo: 1}", ".models.bert.lengths.typo"),
        ("fixed: 32", "fixed: true", ".models.bert.lengths.fixed"),
        (PRICE, "{instance_type: 4}", ".price"),
        ("[pytorch, openvino]", "[pytorch, tensorflow]", ".parameters.runtime"),
        (BATCHES, BATCHES + "\nbudget: {wall_clock: 8 hours}", ".budget.wall_clock"),
        (BATCHES, BATCHES + "\nsearch: random", ".search"),
    ],
)
def test_the_json_schema_refuses_what_the_file_must_not_hold(
    old: str, new: str, place: str
) -> None:
    assert refused(SCHEMA, written(GOOD)) == []
    assert refused(SCHEMA, written(changed((old, new)))) == [place]


def test_the_json_schema_describes_every_section_and_defines_what_it_refers_to() -> None:
    schema = SCHEMA
    assert set(schema["properties"]) == {
        "study", "models", "traffic", "limit", "price", "parameters", "conditions",
        "measurement", "budget", "server", "engines",
    }  # fmt: skip
    text = json.dumps(schema)
    referred = set(re.findall(r'"#/\$defs/(\w+)"', text))
    assert referred <= set(schema["$defs"])
    sections = [one for name, one in schema["$defs"].items() if name.endswith("Section")]
    assert all(one["additionalProperties"] is False and one["description"] for one in sections)


@pytest.mark.parametrize(
    ("settings", "described"),
    [
        (
            {"max_batch_size": "7"},
            "pytorch fp32, max_batch_size 7, queue delay 0 us, 1 x 2 threads",
        ),
        (
            {"max_queue_delay_us": "123"},
            "pytorch fp32, max_batch_size 4, queue delay 123 us, 1 x 2 threads",
        ),
        ({"bert.precision": "int8"}, "openvino int8, no batching, 1 x 2 threads"),
        ({}, "pytorch fp32, no batching, 1 x 2 threads"),
    ],
)
def test_what_is_set_is_used_whatever_the_space_lists(
    settings: dict[str, str], described: str
) -> None:
    point = only_point(small_space(), settings)
    assert len(point) == 1
    assert describe(point.config(point.baseline)) == described


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batching": "false", "max_batch_size": "7"}, "a value has no effect with batching=false"),
        ({"cuda_graphs": "true"}, "a value has no effect with cuda_graphs=true"),
        ({"rate_limit": "4"}, "a value has no effect with rate_limit=4"),
        ({"x.precision": "int8"}, "x.precision: x is none of the models, bert"),
        (
            {"max_queue_delay": "1"},
            "max_queue_delay: unknown key; did you mean max_queue_delay_microseconds?",
        ),
        ({"precison": "int8"}, "precison: unknown key; did you mean precision?"),
        ({"precision": "["}, "precision: must be a value in YAML (expected the node content"),
        ({"precision": "&a [*a]"}, "precision: must be a value in YAML (must be nested at most"),
        ({"precision": "!!python/object:os.system x"}, "tags such as"),
        ({"precision": "a\t: b: c"}, "precision: must be a value in YAML"),
        ({"max_batch_size": "9" * 5000}, "cannot be read as int"),
        ({"max_batch_size": "10000000000"}, "max_batch_size: must be less than or equal to"),
    ],
)
def test_a_setting_that_would_be_dropped_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        only_point(small_space(), settings)
    assert len(str(refused.value)) < 1000


def test_of_thousands_of_mistakes_some_are_shown(tmp_path: Path) -> None:
    text = changed((BATCHES, f"max_batch_size: [{'x, ' * 5000}y]"))
    with pytest.raises(SpaceFileError, match=r"1000 mistakes\n") as refused:
        load(tmp_path, text)
    assert str(refused.value).endswith("\n  and 950 more")


OLD_NAMES = (
    "[4, 8]",
    "[4, 8]\n  batching: true\n  preferred_batch_sizes: half\n  max_queue_delay_us: [0, 9]\n"
    "conditions: [max_queue_delay_us == 0]",
)


def test_old_names_of_parameters_are_read_with_a_note(tmp_path: Path) -> None:
    old = changed(OLD_NAMES)
    new = old.replace("_batch_sizes", "_batch_size").replace("_delay_us", "_delay_microseconds")
    before, now = load(tmp_path, old), load(tmp_path, new)
    assert before.search_space.points.tolist() == now.search_space.points.tolist()
    assert before.content["parameters"] == now.content["parameters"]
    assert now.notes == ()
    assert before.notes == (
        "parameters.preferred_batch_sizes is now called preferred_batch_size; "
        "the old name is still read",
        "parameters.max_queue_delay_us is now called max_queue_delay_microseconds; "
        "the old name is still read",
    )


def test_a_parameter_must_not_have_both_names(tmp_path: Path) -> None:
    both = "[4, 8]\n  max_queue_delay_us: 1\n  max_queue_delay_microseconds: 1"
    assert mistakes(tmp_path, changed(("[4, 8]", both))) == [
        "line 15: parameters.max_queue_delay_us: is the old name of max_queue_delay_microseconds, "
        "which is given too, got 1"
    ]


@pytest.mark.parametrize("key", ["max_queue_delay_us", "max_queue_delay_microseconds"])
def test_a_command_takes_either_name(tmp_path: Path, key: str) -> None:
    space = load(tmp_path, changed(("[4, 8]", "[4, 8]\n  batching: [false, true]"))).search_space
    point = only_point(space, {f"bert.{key}": "123"})
    assert point.models[0].parameter("max_queue_delay_us").values == (123,)
