"""How perf_analyzer is asked and understood. A script stands for it here; the real one, which is
not on every machine, is asked in tests/e2e/test_measure.py and tests/benchmarks.
"""

import json
import os
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from optimizer.commands.measure import _perf_analyzer
from optimizer.errors import LoadTestFailure, UsageError
from optimizer.files.perf_analyzer_data import entries, entry_arrays
from optimizer.load.perf_analyzer import PerfAnalyzerJob, input_data, run_perf_analyzer
from optimizer.workload.streams import Tensors, TensorSpec
from tests.unit.pipelines import space_of

TABLE = (
    "Request Rate,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,"
    "Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,"
    "p50 latency,p90 latency,p95 latency,p99 latency\n"
    "100,198.5,10,200,1500,20,3000,30,5,5100,7000,8200,9900\n"
)
QUESTION = PerfAnalyzerJob(
    model="bert",
    protocol="grpc",
    address="127.0.0.1:1",
    requests=[{"input_ids": np.array([[1, 2, 3]]), "mask": np.array([[1.5]])}],
    rate_per_second=100.0,
    seconds=3.0,
    batch_size=2,
)


def script(folder: Path, body: str) -> Path:
    path = folder / "perf_analyzer"
    path.write_text("#!/bin/bash\n" + textwrap.dedent(body))
    path.chmod(0o755)
    return path


def answering(folder: Path, table: str = TABLE) -> Path:
    (folder / "table.csv").write_text(table)
    return script(
        folder,
        f"""
        echo "$@" > {folder}/arguments
        while [ $# -gt 0 ]; do
            case $1 in
                --input-data) cp "$2" {folder}/input.json ;;
                -f) cp {folder}/table.csv "$2" ;;
            esac
            shift
        done
        """,
    )


def test_it_is_asked_for_the_level_and_its_table_is_understood(tmp_path: Path) -> None:
    opinion = run_perf_analyzer(answering(tmp_path), QUESTION)
    said = (tmp_path / "arguments").read_text()
    assert "-m bert -i grpc -u 127.0.0.1:1 --async --request-rate-range 100.000" in said
    assert "--request-distribution poisson -b 2 --measurement-interval 1000" in said
    assert opinion.achieved_per_second == 198.5 / 2, "requests, each of two inferences"
    assert (opinion.p50_ms, opinion.p95_ms, opinion.p99_ms) == (5.1, 8.2, 9.9)
    assert opinion.queue_ms == 1.5
    assert opinion.command[0] == str(tmp_path / "perf_analyzer")
    assert opinion.cpu_seconds >= 0


def test_saturation_is_asked_as_a_concurrency(tmp_path: Path) -> None:
    run_perf_analyzer(answering(tmp_path), replace(QUESTION, rate_per_second=None, concurrency=64))
    said = (tmp_path / "arguments").read_text()
    assert "--concurrency-range 64" in said
    assert "--request-rate-range" not in said


def test_it_is_given_our_own_requests_one_inference_an_entry(tmp_path: Path) -> None:
    requests = [{"ids": np.array([[1, 2], [3, 4]])}, {"ids": np.array([[5, 6], [7, 8]])}]
    run_perf_analyzer(answering(tmp_path), replace(QUESTION, requests=requests))
    given = (tmp_path / "input.json").read_text()
    assert given == input_data(requests)
    specs = [TensorSpec("ids", "INT64", (2,))]
    arrays = [entry_arrays(entry, specs)["ids"] for _, entry in entries(json.loads(given))]
    assert [array.tolist() for array in arrays] == [[[1, 2]], [[3, 4]], [[5, 6]], [[7, 8]]]


def test_it_is_given_every_type_without_a_batch_axis_too() -> None:
    texts = np.empty((2, 1), object)
    texts[:, 0] = [b"\xff\xd8\0", "ü".encode()]
    numbers = np.array([[1.5], [-2]], ml_dtypes.bfloat16)
    specs = [TensorSpec("t", "BYTES", (1,)), TensorSpec("n", "BF16", (1,))]
    given = [entry for _, entry in entries(json.loads(input_data([{"t": texts, "n": numbers}])))]
    assert [entry_arrays(entry, specs)["t"].tolist() for entry in given] == [
        [[b"\xff\xd8\0"]],
        [["ü".encode()]],
    ]
    assert [entry_arrays(each, specs)["n"].dtype for each in given] == [numbers.dtype] * 2
    scalar: Tensors = {"n": np.asarray(7, np.int16)}
    [(_, entry)] = entries(json.loads(input_data([scalar], batched=False)))
    assert entry_arrays(entry, [TensorSpec("n", "INT16", ())])["n"].tolist() == [7]


def test_it_keeps_to_the_cores_that_it_is_given(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    binary = script(tmp_path, f"grep Cpus_allowed_list /proc/self/status > {tmp_path}/cores")
    with pytest.raises(LoadTestFailure, match="wrote no table"):
        run_perf_analyzer(binary, replace(QUESTION, cores=[core]))
    assert (tmp_path / "cores").read_text().split() == ["Cpus_allowed_list:", str(core)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'failed to connect' >&2; exit 99", r"ended with status 99: failed to connect"),
        ("exit 0", r"wrote no table: .*perf_analyzer -m bert"),
        ("while [ $# -gt 1 ]; do shift; done; touch $1", r"measured nothing: "),
    ],
)
def test_what_it_does_wrong_is_said(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(LoadTestFailure, match=message):
        run_perf_analyzer(script(tmp_path, body), QUESTION)


def test_one_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.load.perf_analyzer._MARGIN_SECONDS", 0.3)
    binary = script(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(LoadTestFailure, match="did not end"):
        run_perf_analyzer(binary, replace(QUESTION, seconds=0.1))
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_pipeline_is_one_model_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    space = space_of(tmp_path, {"classifier.batching": [False, True]})
    assert _perf_analyzer(space) == Path("/bin/perf_analyzer")
    [stream] = space.workload.streams
    several = replace(space.workload, streams=(stream, replace(stream, name="other")))
    with pytest.raises(UsageError, match="it sends requests to one model, not to several"):
        _perf_analyzer(replace(space, workload=several))
