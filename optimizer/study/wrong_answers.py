"""Configurations whose answers are wrong, by what the accuracy gate found of their artefacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import Records
from optimizer.study.events import Note, Watcher
from optimizer.study.gated_artifact import GatedArtifact


def why_wrong(config: ServingConfig, gated: Sequence[GatedArtifact]) -> str | None:
    """Say why answers of a configuration are wrong, by what the gate found of its artefacts.

    An artefact that could not be served was not judged: nothing is said of its answers.
    """
    by_spec = {result.spec: result for result in gated if result.shapes is not None}
    for model in config.models:
        found = by_spec.get(model.artifact)
        if found is None:
            continue
        if found.dropped is not None:
            return found.dropped
        if found.failing is not None and model.max_batch_size >= found.failing.size:
            return found.failing.reason
    return None


def without_wrong_answers(
    store: Records, gated: Sequence[GatedArtifact], watch: Watcher
) -> Mapping[int, TrialRecord]:
    """Return a study's records, those whose answers are now known to be wrong as infeasible.

    They are of an earlier run, whose gate asked for fewer shapes. Raises StorageError.
    """
    records = dict(store.read_all())
    for number, record in records.items():
        wrong = why_wrong(record.config, gated)
        if wrong is not None and record.outcome == "ok":
            reason = f"wrong answers: {wrong}"
            records[number] = replace(record, outcome="infeasible", score=None, reason=reason)
            store.write(records[number])
            watch(Note(f"trial {number} is infeasible: {reason}", True))
    return records
