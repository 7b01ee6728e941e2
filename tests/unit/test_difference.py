"""What changes between two bundles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.export.bundle.config_fields import FieldChange, field_changes
from optimizer.export.bundle.difference import Change, difference
from optimizer.export.bundle.manifest import Bundle, Manifest
from tests.unit.commands import Commands
from tests.unit.exported import Exportable

pytestmark = pytest.mark.usefixtures("fast_disk")
Edit = Callable[[Manifest], Manifest]


@pytest.fixture
def study(tmp_path: Path) -> Exportable:
    return Exportable(tmp_path / "study")


@pytest.fixture
def best(study: Exportable, tmp_path: Path) -> Bundle:
    return study.export(tmp_path / "best")


def test_a_bundle_does_not_differ_from_itself(best: Bundle) -> None:
    found = difference(best.manifest, best.manifest)
    assert found.same
    assert found.caveats == ()
    assert {figure.ratio for figure in found.figures} == {1.0}


def test_what_differs_is_told_by_parameter_and_in_cost(
    study: Exportable, best: Bundle, tmp_path: Path
) -> None:
    other = study.export(tmp_path / "other", trial=0)
    found = difference(other.manifest, best.manifest)
    field = "bert: parameters.precision.string_value"
    assert Change("configuration", field, "fp32", "int8") in found.changes
    assert Change("artefact", "bert: precision", "fp32", "int8") in found.changes
    assert found.files == ("bert/1/model.bin", "bert/1/model.xml")
    figures = {figure.what: figure for figure in found.figures}
    capacity = figures["capacity of a replica, requests/s"]
    assert capacity.before == pytest.approx(100.0)
    assert capacity.after == pytest.approx(280.0)
    assert figures["replicas"].after == 2
    assert found.caveats == ("the capacity of the first is not confirmed: one trial",)


def with_limit(manifest: Manifest) -> Manifest:
    [limit] = manifest.limits
    return replace(manifest, limits=(replace(limit, latency_ms=50.0),))


def with_machine(manifest: Manifest) -> Manifest:
    return replace(manifest, versions=replace(manifest.versions, cpu="Other CPU", triton="2.70.0"))


def with_price(manifest: Manifest) -> Manifest:
    recommended = manifest.recommended
    price = replace(recommended.price, usd_per_hour=0.5)
    return replace(manifest, recommended=replace(recommended, headroom=0.2, price=price))


def with_another_model(manifest: Manifest) -> Manifest:
    [model] = manifest.models
    return replace(manifest, models=(replace(model, name="ranker"),))


def with_arguments(manifest: Manifest) -> Manifest:
    return replace(manifest, server_arguments=("--rate-limit=execution_count",))


@pytest.mark.parametrize(
    ("edit", "changes", "caveats"),
    [
        (
            with_limit,
            [Change("limits", "bert", "p95 within 100 ms", "p95 within 50 ms")],
            ["their capacities are for different limits"],
        ),
        (
            with_machine,
            [
                Change("versions", "triton", "unknown", "2.70.0"),
                Change("versions", "cpu", "Some CPU", "Other CPU"),
            ],
            ["the bundles were measured on different machines"],
        ),
        (
            with_price,
            [
                Change("demand", "headroom", "0%", "20%"),
                Change("price", "$ per hour", "0.36", "0.5"),
            ],
            [],
        ),
        (
            with_another_model,
            [
                Change("configuration", "bert", "served", "none"),
                Change("configuration", "ranker", "none", "served"),
            ],
            [],
        ),
        (
            with_arguments,
            [
                Change(
                    "configuration",
                    "server: arguments",
                    "--disable-auto-complete-config",
                    "--rate-limit=execution_count",
                )
            ],
            [],
        ),
    ],
)
def test_each_kind_of_change(
    best: Bundle, edit: Edit, changes: list[Change], caveats: list[str]
) -> None:
    found = difference(best.manifest, edit(best.manifest))
    assert list(found.changes) == changes
    assert list(found.caveats) == caveats


def test_batching_that_stays_on_is_told_by_what_it_is_given() -> None:
    """An empty message is there as well: `dynamic_batching { }` batches."""
    plain, preferred, without = ModelConfig(), ModelConfig(), ModelConfig()
    plain.dynamic_batching.SetInParent()
    preferred.dynamic_batching.preferred_batch_size.extend([4, 8])
    sizes = FieldChange("dynamic_batching.preferred_batch_size", "none", "4, 8")
    assert field_changes(plain, preferred) == [sizes]
    assert field_changes(without, plain) == [FieldChange("dynamic_batching", "none", "on")]
    assert field_changes(without, preferred) == [
        FieldChange("dynamic_batching", "none", "on"), sizes
    ]  # fmt: skip


def test_a_bundle_whose_files_are_others_is_told(
    best: Bundle, tmp_path: Path, optimizer: Commands
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(best.root, damaged)
    (damaged / "bert/1/model.bin").write_bytes(b"other weights")
    said = optimizer("diff", str(best.root), str(damaged))
    assert f"{damaged} differs from its manifest: bert/1/model.bin differs" in said.out
    assert f"{best.root} is not" not in said.out


def test_capacities_that_cannot_be_told_apart_are_told(best: Bundle) -> None:
    high = replace(best.manifest.measured, capacity_high_per_second=None)
    near = replace(best.manifest.measured, capacity_low_per_second=270.0)
    found = difference(replace(best.manifest, measured=high), replace(best.manifest, measured=near))
    assert found.caveats == ("their capacities show no statistically significant difference",)


def test_the_command(study: Exportable, best: Bundle, tmp_path: Path, optimizer: Commands) -> None:
    other = study.export(tmp_path / "other", trial=0)
    said = optimizer("diff", str(other.root), str(best.root))
    assert (said.code, said.err) == (0, "")
    assert "artefact: bert: precision: fp32 -> int8" in said.out
    assert "file: bert/1/model.bin differs" in said.out
    assert "capacity of a replica" in said.out
    said = optimizer("diff", str(best.root), str(best.root))
    assert said.out.startswith("the manifests are the same")
    assert optimizer("diff", str(best.root), str(tmp_path)).code == 2
