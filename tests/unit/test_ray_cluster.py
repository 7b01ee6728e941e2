"""The slots that a Ray cluster offers, and what stands in their way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from optimizer.cluster.ray_cluster import NodeSlot, node_slots
from optimizer.cluster.ray_worker import NodeContext, NodeWorker, Returned, slot_on_this_node
from optimizer.errors import RequirementError
from optimizer.machine.leftovers import MARK
from optimizer.machine.slots import local_slot
from optimizer.study.events import WorkerLogsRead
from tests.unit import fake_nvml
from tests.unit.studies import failed, ok


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": f"{name}-id-of-its-own",
        "NodeName": name,
        "Alive": alive,
        "Resources": {key.replace("__", ":"): amount for key, amount in resources.items()},
    }


def test_a_node_without_gpus_is_one_slot_with_all_of_its_cores() -> None:
    [slot] = node_slots([node("a", CPU=8.0)], {})
    assert (slot.name, slot.node, slot.cpus, slot.gpus, slot.count) == ("a", "a", 8, 0, 1)
    assert slot.accelerator_type is None


def test_each_gpu_is_a_slot_with_an_equal_part_of_the_cores() -> None:
    slots = node_slots([node("b", CPU=9.0, GPU=4.0, accelerator_type__A10G=1.0)], {})
    assert [slot.name for slot in slots] == ["b/0", "b/1", "b/2", "b/3"]
    assert {(slot.cpus, slot.gpus, slot.accelerator_type) for slot in slots} == {(2, 1, "A10G")}


def test_a_node_without_cores_such_as_a_head_and_a_dead_one_offer_nothing() -> None:
    assert node_slots([node("head", CPU=0.0), node("dead", alive=False, CPU=8.0)], {}) == []


def test_a_custom_resource_chooses_nodes_and_divides_them() -> None:
    nodes = [node("a", CPU=8.0, slot=2.0), node("b", CPU=8.0)]
    slots = node_slots(nodes, {"slot": 1.0})
    assert [(slot.name, slot.cpus, slot.resources) for slot in slots] == [
        ("a/0", 4, (("slot", 1.0),)),
        ("a/1", 4, (("slot", 1.0),)),
    ]


def test_a_custom_resource_gives_no_more_slots_than_gpus() -> None:
    slots = node_slots([node("a", CPU=8.0, GPU=2.0, slot=100.0)], {"slot": 1.0})
    assert len(slots) == 2


def test_nodes_of_one_name_are_told_apart() -> None:
    one, other = node("a", CPU=1.0), {**node("a", CPU=1.0), "NodeID": "ffffff99"}
    assert [slot.name for slot in node_slots([one, other], {})] == ["a-a-id-o", "a-ffffff"]


def slot_of(index: int = 0, count: int = 1) -> NodeSlot:
    return NodeSlot("id", "a", index, count, None, cpus=1, gpus=0, resources=())


def test_a_worker_without_a_gpu_has_the_whole_node() -> None:
    slot, slots = slot_on_this_node(slot_of(), [])
    assert slot == replace(local_slot(), name="a")
    assert slots is None
    hardware = NodeContext(slot, slots, lambda _: None).hardware
    assert (hardware.gpus, hardware.cores) == ((), len(slot.cores))


@pytest.mark.parametrize("gpu_id", ["1", "GPU-b"])
def test_a_worker_uses_the_gpu_that_ray_gave_it(
    gpu_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {"GPU-a": fake_nvml.Card(), "GPU-b": fake_nvml.Card()}
    fake_nvml.install(monkeypatch, cards)
    slot, slots = slot_on_this_node(slot_of(1, 2), [gpu_id])
    assert (slot.name, slot.gpu_uuids) == ("a/1", ("GPU-b",))
    assert len(NodeContext(slot, slots, lambda _: None).hardware.gpus) == 1


def test_a_gpu_that_the_machine_does_not_have_is_an_error_with_those_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_nvml.install(monkeypatch, {"GPU-a": fake_nvml.Card()})
    with pytest.raises(
        RequirementError, match="Ray gave GPU 3 to the worker; the machine has GPU-a"
    ):
        slot_on_this_node(slot_of(), ["3"])


def test_a_failed_trial_sends_the_logs_of_its_worker_before_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    log = tmp_path / "study" / "logs" / "server.log"
    log.parent.mkdir(parents=True)
    log.write_text("E0101 the model broke")
    worker = NodeWorker(slot_of(), "0")
    worker._context = NodeContext(replace(local_slot(), name="a"), None, worker._messages.put)
    logs = WorkerLogsRead("a", {"server.log": b"E0101 the model broke"})
    assert [*worker.evaluate(lambda *_: failed())] == [logs, Returned(failed())]
    assert [*worker.evaluate(lambda *_: ok(100))] == [Returned(ok(100))]
    worker.close()
