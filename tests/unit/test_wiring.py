from __future__ import annotations

from dataclasses import replace

from optimizer.commands.protocols import protocol_of, protocols
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import shipped_prices
from optimizer.load.capacity import CapacityProtocol
from optimizer.machine.slots import Slot
from optimizer.space_file.reader import MeasurementSettings, load_space
from tests.unit.simulated_server import workload
from tests.unit.studies import HARDWARE

SPACE = load_space(shipped("search_spaces") / "quickstart.yaml", shipped_prices(), HARDWARE)
CPU = Slot((0, 1), (0, 1))


def test_the_space_says_how_long_levels_take() -> None:
    found = protocols(SPACE, CPU)
    assert (found.search.saturation_seconds, found.search.check_seconds) == (2.5, 3.0)
    assert found.search.warmup_seconds == 0.7
    assert found.confirm == replace(found.search, check_seconds=4.0)


def test_a_gpu_is_confirmed_for_ten_minutes_over_both_rounds() -> None:
    gpu = replace(CPU, gpu_uuids=("GPU-1",))
    unsaid = replace(SPACE, measurement=replace(SPACE.measurement, confirm_seconds=None))
    assert protocols(unsaid, gpu).confirm.check_seconds == 300.0
    assert protocols(unsaid, CPU).confirm.check_seconds == 20.0
    assert protocols(unsaid, gpu).search == protocols(unsaid, CPU).search
    assert protocols(SPACE, gpu).confirm.check_seconds == 4.0, "what the file says is kept"


def test_the_load_budget_suffices_for_a_first_level_where_levels_are_long() -> None:
    usual = protocol_of(MeasurementSettings(8.0, 10.0, 1.0, None, 5000), workload(100))
    assert usual.load_seconds == CapacityProtocol().load_seconds == 10.0
    long = protocol_of(MeasurementSettings(20.0, 30.0, 5.0, None, 5000), workload(100))
    assert long.load_seconds == (5 + 20 / 4) + (5 + 0.6 * 30)
