"""Generated studies, bundles and files for the documented commands that need no server."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optimizer.configuration.search_space import SearchSpace
from tests.unit.exported import Exportable
from tests.unit.hosts import A10G, T4, price_of
from tests.unit.reported import Names, studied
from tests.unit.studies import MACHINE, small_space
from tests.unit.test_init_from import DEPLOYED, deployed
from tests.unit.whole_studies import WholeStudy

TRIALS = 20
SEARCHED = ("quickstart", "bert-large")
HOSTS = {"t4": (T4, "ml.g4dn.xlarge"), "a10g": (A10G, "ml.g5.xlarge")}


def fill(folder: Path) -> None:
    """Write them with the names that the pages use; a copied host's folder lies beside `folder`."""
    results = folder / "results"
    for name in SEARCHED:
        studied(results / name, TRIALS, space=_space())
    for name, (machine, instance_type) in HOSTS.items():
        # The shipped list has these two prices from different sources, which `recommend` refuses.
        listed = price_of("ml.g4dn.xlarge")
        price = replace(price_of(instance_type), source=listed.source, as_of=listed.as_of)
        studied(results / name, TRIALS, Names(price, machine), _space())
    shutil.copytree(results / "a10g", folder.parent / "copied" / "a10g")
    for name, version in (("before", "0.6.0"), ("after", "0.7.0")):
        packages = (("nvidia-pytriton", version), ("numpy", "2"))
        capacities = {0: 100.0, 1: 180.0, 2: 200.0, 3: 150.0}
        WholeStudy(
            results / name, capacities, {2: (200.0, 200.0), 0: (100.0, 100.0)},
            machine=replace(MACHINE, packages=packages), pace=None,
        ).written()  # fmt: skip
    exportable = Exportable(folder.parent / "exportable")
    exportable.export(folder / "before", trial=0)
    exportable.export(folder / "bundle")
    deployed(folder / "models", DEPLOYED)
    (folder / "week.csv").write_text("\n".join(_week()) + "\n")


def _space() -> SearchSpace:
    return small_space(max_batch_size=(4, 8, 16, 32))


def _week() -> Sequence[str]:
    rows = [f"{hour * 3600},{1000 + 100 * (hour % 24)}" for hour in range(7 * 24)]
    return ["seconds,requests_per_second", *rows]
