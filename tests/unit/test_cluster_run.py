"""What a run on a Ray cluster refuses before it connects, and that no other run imports Ray."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.shared_cache import SharedCache
from optimizer.cli import commands
from optimizer.cluster.choice import ClusterChoice, cluster_choice
from optimizer.commands import trial_site
from optimizer.commands.trial_site import open_site
from optimizer.configuration.hardware import Hardware
from optimizer.errors import RequirementError, SpaceFileError, UsageError
from optimizer.measurement.cost import Price
from optimizer.search.prepared import Prepared
from optimizer.space_file.reader import load_space, study_with_prices
from optimizer.triton.session import ModelFiles
from tests.e2e import tiny
from tests.unit.studies import MACHINE, small_space

HARDWARE = Hardware(2, 8000)
LISTED = {"g4dn.xlarge": Price("g4dn.xlarge", 0.5, "list", "2026-01-01")}


def space_with_prices(folder: Path, **prices: object) -> Path:
    content = tiny.space()
    content["price"] = {"by_accelerator": prices}
    return tiny.write_space(folder, content)


@pytest.mark.slow
def test_a_run_imports_ray_only_with_the_option() -> None:
    code = (
        "import sys, optimizer, optimizer.api, optimizer.cli.run, optimizer.commands.trial_site\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'ray'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_without_ray_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        pytest.raises(RequirementError, match=r"needs Ray: pip install '.*\[cluster\]'"),
        open_site(lambda _: None, ClusterChoice("auto")),
    ):
        pytest.fail("it was opened")


def test_slots_of_this_machine_do_not_go_with_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_site, "chosen_slots", lambda *_: object())
    with (
        pytest.raises(UsageError, match="--gpus and --slots: must be left out with --cluster"),
        open_site(lambda _: None, ClusterChoice("auto"), slots=2),
    ):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--worker-resources", "tuning"], "must be NAME=AMOUNT with an amount above 0"),
        (["--worker-resources", "tuning=0"], "must be NAME=AMOUNT with an amount above 0"),
        (["--worker-resources", "tuning=-1"], "must be NAME=AMOUNT with an amount above 0"),
    ],
)
def test_a_wrong_resource_is_refused(options: list[str], message: str) -> None:
    ran = CliRunner().invoke(commands, ["run", "space.yaml", "--cluster", "auto", *options])
    assert ran.exit_code == 2
    assert message in ran.output


def test_resources_without_a_cluster_are_refused() -> None:
    assert cluster_choice(None, ()) is None
    assert cluster_choice("auto", [("a", 1.0)]) == ClusterChoice("auto", (("a", 1.0),))
    with pytest.raises(UsageError, match="--worker-resources: needs --cluster; got tuning"):
        cluster_choice(None, [("tuning", 1.0)])


def test_each_accelerator_has_its_own_price(tmp_path: Path) -> None:
    own = {"instance_type": "rack-7", "usd_per_hour": 0.9}
    path = space_with_prices(tmp_path, T4={"instance_type": "g4dn.xlarge"}, L4=own)
    assert load_space(path, LISTED, HARDWARE, accelerator_type="T4").price == LISTED["g4dn.xlarge"]
    space = load_space(path, LISTED, HARDWARE, accelerator_type="L4")
    assert (space.price.instance_type, space.price.usd_per_hour) == ("rack-7", 0.9)
    # What a study is resumed with does not depend on the prices of other machines.
    alone = tiny.space()
    alone["price"] = own
    assert space.content == load_space(tiny.write_space(tmp_path, alone), {}, HARDWARE).content


def test_an_accelerator_without_a_price_is_named(tmp_path: Path) -> None:
    path = space_with_prices(tmp_path, T4={"instance_type": "g4dn.xlarge"})
    assert study_with_prices(path, LISTED, ["T4"]) == "tiny"
    with pytest.raises(SpaceFileError, match=r"price\.by_accelerator: .* has none for A10G, L4"):
        study_with_prices(path, LISTED, ["A10G", "L4", "T4"])
    with pytest.raises(SpaceFileError, match=r"price\.by_accelerator: .* has none for A10G"):
        load_space(path, LISTED, HARDWARE, accelerator_type="A10G")


def test_one_price_is_not_enough_for_several_accelerators(tmp_path: Path) -> None:
    path = tiny.write_space(tmp_path, tiny.space())
    with pytest.raises(SpaceFileError, match="has none for A10G, T4"):
        study_with_prices(path, {}, ["A10G", "T4"])


def test_prices_by_accelerator_are_for_a_cluster_alone(tmp_path: Path) -> None:
    path = space_with_prices(tmp_path, T4={"instance_type": "g4dn.xlarge"})
    with pytest.raises(SpaceFileError, match=r"price\.by_accelerator: .*a Ray cluster alone"):
        load_space(path, LISTED, HARDWARE)


def test_a_mistake_in_one_of_several_prices_has_its_key(tmp_path: Path) -> None:
    path = space_with_prices(tmp_path, T4={"instance_type": "unknown"})
    with pytest.raises(
        SpaceFileError, match=r"price\.by_accelerator.T4.instance_type: must be listed"
    ):
        load_space(path, LISTED, HARDWARE, accelerator_type="T4")


class TestOnNodes:
    """What needs Ray to be imported, and no cluster."""

    @pytest.fixture(autouse=True)
    def _ray(self) -> None:
        pytest.importorskip("ray")

    def test_a_node_of_another_kind_is_told_how_it_differs(self) -> None:
        from optimizer.commands.cluster import difference

        other = replace(MACHINE, cpu="another", driver="580.1")
        assert difference(MACHINE, MACHINE) == ""
        text = difference(MACHINE, other)
        assert text.startswith("it is of another kind: ")
        assert f"cpu is another, the study's is {MACHINE.cpu}" in text
        assert "driver is 580.1" in text

    def test_an_artefact_comes_from_a_shared_cache_or_is_named(self, tmp_path: Path) -> None:
        from optimizer.commands.cluster import PreparedElsewhere

        shared = SharedCache((tmp_path / "shared").as_uri())
        builder = ArtifactCache(tmp_path / "builder", shared)
        built = builder.get_or_build({"kind": "graph"}, _write_graph)
        assert builder.key_of(built.path) == {"kind": "graph"}
        assert builder.key_of(tmp_path) is None
        space = small_space()
        spec = space.artifacts[0]
        node = ArtifactCache(tmp_path / "node", shared)
        file = node.root / built.path.relative_to(builder.root)
        payloads = (
            load_space(tiny.write_space(tmp_path, tiny.space()), {}, HARDWARE)
            .workload.streams[0]
            .payloads
        )
        prepared = Prepared(space, {spec: ModelFiles(file, payloads, ())}, (), 0.0)

        alone = PreparedElsewhere(prepared, {spec: {"kind": "graph"}}, {})
        with pytest.raises(RequirementError) as refused:
            alone.obtain_artifacts(ArtifactCache(node.root))
        assert f"cannot read the artefact {spec.label} at {file}" in str(refused.value)
        assert "give --cache a folder that all nodes share" in str(refused.value)
        with pytest.raises(RequirementError, match="cannot read the artefact"):
            replace(alone, keys={spec: {"kind": "other"}}).obtain_artifacts(node)
        alone.obtain_artifacts(node)
        assert (file / "graph").read_text() == "a graph"


def _write_graph(folder: Path) -> None:
    (folder / "graph").write_text("a graph")
