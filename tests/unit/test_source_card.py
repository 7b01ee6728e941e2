"""What a source says of its model: as it says it, or not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.artifacts.source_card import SourceCard, read_card
from optimizer.workload.model_spec import OnnxSource, TransformersSource

NAMED = {"0": "negative", "1": "positive"}


def checkpoint(folder: Path, config: dict[str, Any], card: str | None = None) -> TransformersSource:
    (folder / "config.json").write_text(json.dumps(config))
    if card is not None:
        (folder / "README.md").write_text(card)
    return TransformersSource("BertForSequenceClassification", str(folder))


def test_a_checkpoint_says_both(tmp_path: Path) -> None:
    card = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n"
    source = checkpoint(tmp_path, {"id2label": NAMED}, card)
    assert read_card(source) == SourceCard("apache-2.0", ("negative", "positive"))


@pytest.mark.parametrize(
    "card", [None, "# A model\nlicense: mit\n", "---\nlanguage: en\n---\nlicense: mit\n", ""]
)
def test_a_licence_is_where_it_belongs_or_not_known(tmp_path: Path, card: str | None) -> None:
    assert read_card(checkpoint(tmp_path, {}, card)).licence is None


@pytest.mark.parametrize(
    "id2label",
    [None, {}, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "2": "c"}, {"0": "a\nb", "1": "c"}],
)
def test_classes_that_nobody_has_named_have_no_labels(tmp_path: Path, id2label: Any) -> None:
    assert read_card(checkpoint(tmp_path, {"id2label": id2label})).labels == ()


def test_what_the_space_file_says_goes_first(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, {"id2label": NAMED})
    own = TransformersSource(
        source.class_name, source.checkpoint, json.dumps({"id2label": {"0": "no", "1": "yes"}})
    )
    assert read_card(own).labels == ("no", "yes")


def test_random_weights_have_no_licence() -> None:
    source = TransformersSource("BertForSequenceClassification", None, '{"hidden_size": 32}')
    assert read_card(source) == SourceCard()


def test_an_onnx_file_says_it_in_its_metadata(tmp_path: Path) -> None:
    tensor = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    model = helper.make_model(helper.make_graph([node], "g", [tensor], [output]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert read_card(OnnxSource(path)) == SourceCard()
    helper.set_model_props(model, {"License": "MIT"})
    onnx.save(model, path)
    assert read_card(OnnxSource(path)) == SourceCard("MIT")
