"""What the sources of a study's models say of them, kept beside it for its exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from optimizer.artifacts.source_card import SourceCard, read_card
from optimizer.errors import StorageError
from optimizer.files.atomic import write_json
from optimizer.study.directory import StudyDirectory
from optimizer.workload.model_spec import ModelSpec


def write_source_cards(directory: StudyDirectory, models: Sequence[ModelSpec]) -> None:
    """Read the cards of all models, while their sources are at hand. Raises StorageError."""
    cards = {model.name: read_card(model.source) for model in models}
    write_json(directory.sources, {name: asdict(card) for name, card in cards.items()})


def read_source_cards(directory: StudyDirectory) -> Mapping[str, SourceCard]:
    """The cards by model; none in a study of an earlier version.

    Raises:
        StorageError: when the file is damaged.
    """
    if not directory.sources.exists():
        return {}
    try:
        return {
            name: SourceCard(card["licence"], tuple(card["labels"]))
            for name, card in directory.read_json(directory.sources).items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {directory.sources}: no cards ({error})") from error
