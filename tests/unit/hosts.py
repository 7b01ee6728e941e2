"""Studies of several hosts, made up: what lies in their folders when they are copied together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.search_space import SearchSpace
from optimizer.files.atomic import write_json
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import read_prices
from optimizer.fleet.price_rules import PriceChoice, listed_price
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Demand, Price
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import Measurement
from optimizer.measurement.resource_use import GpuUse, MachineUse
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace, write_searched
from optimizer.study.trial_records import measured_record
from tests.unit.studies import DEMAND, MACHINE, SETTING, ok, small_space
from tests.unit.tables import WORKLOAD

LISTED = read_prices(shipped("prices.csv"))
CONTENT: Mapping[str, Any] = {
    "models": {"bert": {"source": {"onnx": "bert.onnx"}, "parameters": None}},
    "traffic": {"arrivals": "poisson", "batch_size": 1, "demand_per_second": 500.0},
    "limit": {"percentile": 95.0, "latency_ms": 100.0},
}
T4 = replace(MACHINE, cores=4, memory_gib=16, gpus=("Tesla T4",), driver="580.1")
A10G = replace(T4, gpus=("NVIDIA A10G",))


def price_of(instance_type: str, choice: PriceChoice | None = None) -> Price:
    """As it is listed."""
    return listed_price(LISTED, instance_type, choice or PriceChoice()).price


def space_on(machine: Machine) -> SearchSpace:
    """16 points on the machine's GPUs, or on its CPU where it has none."""
    gpus = tuple(
        Gpu(f"GPU-{n}", name, (7, 5), 15_360 if "T4" in name else 23_028)
        for n, name in enumerate(machine.gpus)
    )
    hardware = Hardware(machine.cores, 1024 * machine.memory_gib, gpus)
    runtime = "tensorrt" if gpus else "openvino"
    return small_space(
        hardware=hardware,
        runtime=(runtime,),
        max_batch_size=(8,),
        intra_op_threads=(1,),
    )


def use_of(machine: Machine, busy_cores: float) -> MachineUse:
    """Two seconds, each GPU at 90 %, 3 GiB and 65 W."""
    gpus = tuple(
        GpuUse(f"GPU-{n}", name, 90.0, 3072.0, 65.0, 1500.0, 70.0)
        for n, name in enumerate(machine.gpus)
    )
    return MachineUse(2.0, machine.cores, 2 * busy_cores, 4096.0, 0.0, gpus)


def on_machine(evaluation: Evaluation, use: MachineUse) -> Evaluation:
    """The same, watched."""
    assert evaluation.measurement is not None
    levels = tuple(replace(level, machine=use) for level in evaluation.measurement.levels)
    measurement: Measurement = replace(evaluation.measurement, levels=levels)
    return replace(evaluation, measurement=measurement)


def host(
    root: Path,
    price: Price,
    machine: Machine,
    capacities: Sequence[float],
    *,
    busy_cores: float = 1.0,
    confirmed: Sequence[float] = (),
    content: Mapping[str, Any] = CONTENT,
    demand: Demand = DEMAND,
) -> StudyDirectory:
    """A study whose first configurations serve `capacities`; its first one is confirmed."""
    directory, space = StudyDirectory(root), space_on(machine)
    write_searched(directory, SearchedSpace(root.name, space, WORKLOAD, price, demand))
    write_json(directory.space, {"space": content, "machine": machine.to_json()})
    use = use_of(machine, busy_cores)
    for n, capacity in enumerate(capacities):
        evaluation = on_machine(ok(capacity), use)
        directory.trials.write(measured_record(n, space.config(space.at(n)), evaluation, SETTING))
    for n, capacity in enumerate(confirmed):
        evaluation = on_machine(ok(capacity, p95_ms=60.0 + n), use)
        record = measured_record(n, space.config(space.at(0)), evaluation, SETTING)
        directory.confirmations.write(record)
    return directory
