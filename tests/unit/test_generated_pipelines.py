"""Pipelines that a space file has generated: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts.datasets import model_inputs
from optimizer.artifacts.model_source import source_of
from optimizer.commands.baseline import BaselineOptions, measure_baselines
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.errors import SpaceFileError, UsageError
from optimizer.measurement.cost import Price
from optimizer.search.generated_pipeline import generated_pipeline
from optimizer.space_file.chosen_point import fixed_at
from optimizer.space_file.reader import Space, load_space
from optimizer.study.gated_artifact import GatedArtifact
from optimizer.triton.pipeline_config import pipeline_config
from optimizer.workload.model_spec import PipelineSource
from tests.e2e import tiny
from tests.e2e.test_text_classification import LABELS, STEPS, space
from tests.tokenizer_files import SPECIAL, write_tokenizer

PRICES: dict[str, Price] = {}
HARDWARE = Hardware(cores=2, memory_mib=16_000)
Change = Callable[[dict[str, Any]], None]


def read(folder: Path, change: Change = lambda content: None, kind: str = "ensemble") -> Space:
    content = deepcopy(space(kind))
    change(content)
    write_tokenizer(folder / "tokenizer.json")
    return load_space(tiny.write_space(folder, content), PRICES, HARDWARE)


def steps(content: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = content["models"]["classifier"]["pipeline"]["steps"]
    return own


@pytest.mark.parametrize("kind", ["ensemble", "bls"])
def test_the_steps_and_what_joins_them(tmp_path: Path, kind: Any) -> None:
    read_space = read(tmp_path, kind=kind)
    assert [model.name for model in read_space.models] == [*STEPS, "classifier"]
    composed = ComposedModel("classifier", kind, in_sequence(STEPS))
    assert read_space.search_space.graph == ModelGraph((composed,))
    assert [stream.target for stream in read_space.workload.streams] == ["classifier"]
    assert len(read_space.search_space) == 2
    baseline = read_space.search_space.config(read_space.search_space.baseline)
    runtimes = [model.artifact.runtime for model in baseline.models]
    assert runtimes == ["tokenizers", "onnxruntime", "softmax", "repository"]


def test_a_bare_name_is_of_every_step_that_has_it(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["parameters"] = {"precision": ["fp32", "int8"], "batching": [False, True]}

    values = {
        parameter.key: parameter.values
        for parameter in read(tmp_path, change).search_space.parameters
        if len(parameter.values) > 1
    }
    assert values == {
        "tokenizer.batching": (False, True),
        "bert.precision": ("fp32", "int8"),
        "bert.batching": (False, True),
        "labeller.batching": (False, True),
    }


def test_instances_of_texts_take_no_cores_of_the_model(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["parameters"] = {"instance_count": [1, 2], "tokenizer.instance_count": [3]}
        content["conditions"] = ["instance_count * intra_op_threads == cores"]

    points = read(tmp_path, change).search_space
    counts = {
        tuple(model.instance_count for model in points.config(points.at(row)).models[:3])
        for row in range(len(points))
    }
    assert counts == {(3, 2, 1), (3, 2, 2)}


def test_steps_without_a_model_run_on_the_cpu_beside_gpus(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    content = space("ensemble")
    content["server"] = {"launcher": "docker", "image": "triton", "gpus": "all"}
    hardware = Hardware(cores=4, memory_mib=16_000, gpus=(Gpu("GPU-0", "A10G", (8, 6), 23_028),))
    points = load_space(tiny.write_space(tmp_path, content), PRICES, hardware).search_space
    config = points.config(points.baseline)
    kinds = {model.name: model.groups[0].kind for model in config.models}
    assert [kinds[name] for name in STEPS] == ["KIND_CPU", "KIND_GPU", "KIND_CPU"]


def test_the_configuration_of_the_ensemble_passes_each_tensor_on(tmp_path: Path) -> None:
    target = read(tmp_path).models[-1]
    assert isinstance(target.source, PipelineSource)
    config = pipeline_config(target, target.source)
    passed = [(dict(s.input_map), dict(s.output_map)) for s in config.ensemble_scheduling.step]
    tokens = {name: f"tokenizer.{name}" for name in ("input_ids", "attention_mask")}
    assert passed == [
        ({"TEXT": "TEXT"}, tokens),
        (tokens, {"logits": "bert.logits"}),
        ({"logits": "bert.logits"}, {"label": "label", "score": "score"}),
    ]


def test_texts_have_the_stated_number_of_tokens(tmp_path: Path) -> None:
    tokenizer, bert, *_ = read(tmp_path).models
    request = model_inputs(bert).evaluation[0]
    assert request["input_ids"].shape == (1, 16)
    lengths = {int(row["attention_mask"].sum()) for row in model_inputs(bert).evaluation}
    assert lengths <= {n + 2 for n in range(4, 13)}
    assert len(lengths) > 1
    unknown = SPECIAL.index("[UNK]")
    assert all(unknown not in row["input_ids"] for row in model_inputs(bert).evaluation)
    texts = [row["TEXT"][0, 0] for row in model_inputs(tokenizer).evaluation]
    assert len(texts) == len(model_inputs(bert).evaluation) == 8


def test_texts_of_a_file(tmp_path: Path) -> None:
    lines = [f'{{"TEXT": ["please {word}"]}}' for word in ("wait", "confirm", "the", "before")]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))

    def change(content: dict[str, Any]) -> None:
        own = content["models"]["classifier"]
        own["requests"] = "texts.jsonl"
        own["inputs"]["TEXT"] = {"data_type": "BYTES", "shape": [1]}

    read_space = read(tmp_path, change)
    assert read_space.accuracy_evidence == "dataset"
    bert = read_space.models[1]
    assert not bert.int8_is_a_guess(calibrated=True)
    assert len(model_inputs(bert).evaluation) == 2


def test_the_reference_of_the_labels_is_sorted(tmp_path: Path) -> None:
    labeller = read(tmp_path).models[2]
    answers = source_of(labeller).open().run({"logits": np.array([[0.0, 2.0, 1.0]], np.float32)})
    assert answers["label"].tolist() == [[b"neutral", b"positive"]]
    assert answers["score"] == pytest.approx(np.array([[0.6652, 0.2447]]), abs=1e-4)


def test_a_pipeline_without_artefact_of_a_step_cannot_be_served(tmp_path: Path) -> None:
    points = read(tmp_path).search_space
    specs = {spec.model: spec for spec in points.artifacts}
    dropped = [GatedArtifact(specs["bert"], dropped="too inaccurate")]
    assert generated_pipeline(specs["classifier"], points, {}, dropped) is None
    pipeline = generated_pipeline(specs["classifier"], points, {}, [])
    assert pipeline is not None
    assert pipeline.merged == 8
    assert [model.max_batch_size for model in pipeline.config.models] == [1, 8, 1, 1]


def _set(step: str, **keys: Any) -> Change:
    return lambda content: steps(content)[step].update(keys)


def _model(**keys: Any) -> Change:
    return lambda content: content["models"]["classifier"].update(keys)


def _parameters(**keys: Any) -> Change:
    return lambda content: content["parameters"].update(
        {key.replace("__", "."): value for key, value in keys.items()}
    )


MISTAKES: list[tuple[Change, str]] = [
    (_set("tokenizer", tokenizer="none.json"), "pipeline.steps.tokenizer.tokenizer: must be read"),
    (_set("tokenizer", tokenizer="space.yaml"), "tokenizer.tokenizer: must be JSON"),
    (_set("tokenizer", tokenizer="source"), "source needs a checkpoint directory in bert.source"),
    (_set("tokenizer", max_length=65), "max_position_embeddings of bert (64), got 65"),
    (
        lambda content: steps(content)["bert"]["source"]["config"].update(vocab_size=100),
        "must have at most the tokens of bert (vocab_size 100)",
    ),
    (_set("labeller", labels=LABELS[:2]), "must be as many as the outputs of bert (num_labels 3)"),
    (_set("labeller", labels="source"), "must be listed: the source of bert does not tell them"),
    (_set("labeller", top_k=4), "labeller.top_k: must be at most the number of labels, 3"),
    (_set("labeller", source={}), "must have exactly one of tokenizer, source, labels"),
    (lambda content: steps(content).pop("labeller"), "pipeline.steps: must be three steps"),
    (_model(lengths={"fixed": 3}), "lengths: must be left out of a pipeline"),
    (_model(inputs={"IDS": {"maximum": 5, "minimum": 0}}), "data_type BYTES, shape [1]"),
    (_parameters(tokenizer__precision=["int8"]), "the model is served as as_deployed"),
    (_parameters(classifier__batching=[True]), "has no effect on an ensemble, only on its steps"),
    (_parameters(labeler__batching=[True]), "labeler is none of the models"),
    (_parameters(runtime=["softmax"]), "softmax executes no models, only a step of a pipeline"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[rule for _, rule in MISTAKES])
def test_mistakes(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(SpaceFileError) as caught:
        read(tmp_path, change)
    assert message in str(caught.value)


def test_words_need_a_pipeline(tmp_path: Path) -> None:
    content = tiny.space()
    text = {"data_type": "BYTES", "shape": [1], "words": 5}
    content["models"]["bert"]["inputs"] = {"TEXT": text}
    with pytest.raises(SpaceFileError, match=r"inputs\.TEXT\.words: needs a pipeline"):
        load_space(tiny.write_space(tmp_path, content), PRICES, HARDWARE)


def test_a_point_sets_the_model_of_the_pipeline(tmp_path: Path) -> None:
    read_space = read(tmp_path)
    fixed = fixed_at(read_space, {"precision": "int8", "tokenizer.instance_count": "4"})
    config = fixed.search_space.config(fixed.search_space.baseline)
    assert config.models[1].artifact.precision == "int8"
    assert config.models[0].instance_count == 4
    with pytest.raises(UsageError, match="precision"):
        fixed_at(read_space, {"tokenizer.precision": "int8"})


def test_the_published_configurations_are_not_of_pipelines(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(UsageError, match="of single models, and classifier is a pipeline: `meas"):
        measure_baselines(BaselineOptions(tmp_path / "space.yaml"), lambda _: None)
