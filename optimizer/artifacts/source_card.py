"""Read a model's licence and class names from its source, without network access."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.workload.model_spec import OnnxSource, Source, TransformersSource

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_LICENCE = re.compile(r"^licen[cs]e:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)
_LICENCE_KEYS = ("license", "licence")
_DEFAULT_LABEL = re.compile(r"LABEL_\d+")
"""Name that transformers gives to unnamed classes."""


@dataclass(frozen=True)
class SourceCard:
    """Licence and class names of a model.

    Attributes:
        licence: as the source names it; None where it does not.
        labels: class names in the order of the outputs; empty where the classes are unnamed.
    """

    licence: str | None = None
    labels: tuple[str, ...] = ()


def read_card(source: Source) -> SourceCard:
    """Return the card of a model's source.

    A checkpoint has it in config.json and in the front matter of README.md, if these are on this
    machine; an ONNX file in its metadata, under "license".
    """
    if isinstance(source, OnnxSource):
        return SourceCard(_licence_of_onnx(source.path))
    if not isinstance(source, TransformersSource):
        return SourceCard()
    labels = _labels(json.loads(source.config))
    folder = _folder(source.checkpoint) if source.checkpoint is not None else None
    if folder is None:
        return SourceCard(None, labels)
    config = _json(folder / "config.json")
    return SourceCard(_licence_of_card(folder / "README.md"), labels or _labels(config))


def _folder(checkpoint: str) -> Path | None:
    """Return a checkpoint's directory, or the download of a hub checkpoint; None without one."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import try_to_load_from_cache

    downloaded = try_to_load_from_cache(checkpoint, "config.json")
    return Path(downloaded).parent if isinstance(downloaded, str) else None


def _licence_of_card(card: Path) -> str | None:
    if not card.is_file():
        return None
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    licence = _LICENCE.search(front[1]) if front is not None else None
    return licence[1] if licence is not None else None


def _licence_of_onnx(path: Path) -> str | None:
    import onnx

    properties = onnx.load(path, load_external_data=False).metadata_props
    values = {entry.key.lower(): entry.value.strip() for entry in properties}
    return next((values[key] for key in _LICENCE_KEYS if values.get(key)), None)


def _json(path: Path) -> Mapping[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of a transformers configuration, whose keys are numbers as text."""
    named = {int(at): str(name) for at, name in (config.get("id2label") or {}).items()}
    labels = tuple(named.get(at, "") for at in range(len(named)))
    usable = all(label.strip() and "\n" not in label for label in labels)
    unnamed = all(map(_DEFAULT_LABEL.fullmatch, labels))
    return labels if usable and not unnamed else ()
