"""What a model's source says of the model: its licence, and the names of its classes.

Nothing is asked of a network, and nothing is made up: what the source does not say is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.workload.model_spec import OnnxSource, TransformersSource

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_LICENCE = re.compile(r"^licen[cs]e:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)
_LICENCE_KEYS = ("license", "licence")
_MADE_UP_LABEL = re.compile(r"LABEL_\d+")
"""What transformers calls the classes that nobody has named."""


@dataclass(frozen=True)
class SourceCard:
    """What is known of a model.

    Attributes:
        licence: as its source names it; None where it does not.
        labels: of its classes, in the order of the outputs; empty where nobody has named them.
    """

    licence: str | None = None
    labels: tuple[str, ...] = ()


def read_card(source: TransformersSource | OnnxSource) -> SourceCard:
    """The card of a source that models were exported from.

    A checkpoint says it in config.json and in the front matter of README.md, as far as it is on
    this machine; an ONNX file in its metadata, under "license".
    """
    if isinstance(source, OnnxSource):
        return SourceCard(_licence_of_onnx(source.path))
    labels = _labels(json.loads(source.config))
    folder = _folder(source.checkpoint) if source.checkpoint is not None else None
    if folder is None:
        return SourceCard(None, labels)
    config = _json(folder / "config.json")
    return SourceCard(_licence_of_card(folder / "README.md"), labels or _labels(config))


def _folder(checkpoint: str) -> Path | None:
    """Where a checkpoint lies: a directory, or what was downloaded of a hub's name."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import try_to_load_from_cache

    downloaded = try_to_load_from_cache(checkpoint, "config.json")
    return Path(downloaded).parent if isinstance(downloaded, str) else None


def _licence_of_card(card: Path) -> str | None:
    if not card.is_file():
        return None
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    found = _LICENCE.search(front[1]) if front is not None else None
    return found[1] if found is not None else None


def _licence_of_onnx(path: Path) -> str | None:
    import onnx

    said = onnx.load(path, load_external_data=False).metadata_props
    found = {entry.key.lower(): entry.value.strip() for entry in said}
    return next((found[key] for key in _LICENCE_KEYS if found.get(key)), None)


def _json(path: Path) -> Mapping[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a transformers configuration, which numbers them as text."""
    named = {int(at): str(name) for at, name in (config.get("id2label") or {}).items()}
    labels = tuple(named.get(at, "") for at in range(len(named)))
    usable = all(label.strip() and "\n" not in label for label in labels)
    made_up = all(map(_MADE_UP_LABEL.fullmatch, labels))
    return labels if usable and not made_up else ()
