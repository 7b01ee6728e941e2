"""From what became of every request to a measured level."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import LoadTestFailure
from optimizer.load.exchange import Replies
from optimizer.load.level_plan import ClosedLoop, EndReason, LevelPlan, OpenLoop
from optimizer.load.levels import SLICES, load_level, refuse_if_all_failed
from optimizer.measurement.knee import knee_point
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import level_verdict, limit_overshoot, why_missed
from optimizer.measurement.resource_use import ClientUse
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream

CLIENT = ClientUse(processes=1, cpu_seconds=0.5, memory_mib=60.0, lag_ms=0.2)
PLAN = LevelPlan(OpenLoop(0.5), warmup_seconds=1, seconds=4, timeout_seconds=3)


def stream(name: str = "main", demand_per_second: float = 10.0) -> Stream:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    return Stream(name, "bert", "poisson", payloads, LatencyLimit(90, 100), demand_per_second)


def replies(
    due: list[float],
    latencies: list[float],
    errors: dict[int, str] | None = None,
    lag: float = 0.0,
    streams: list[int] | None = None,
) -> Replies:
    times = np.array(due)
    return Replies(
        streams=np.array(streams or [0] * len(due)),
        due_seconds=times,
        sent_seconds=times + lag,
        done_seconds=times + np.array(latencies),
        errors=errors or {},
    )


def measure(seen: Replies, plan: LevelPlan = PLAN) -> LoadLevel:
    return load_level(plan, [stream()], seen, CLIENT)


def test_only_requests_due_in_the_window_are_counted() -> None:
    level = measure(replies([0.5, 1.0, 2.0, 4.9, 5.0], [9.0, 0.01, 0.02, 0.03, 9.0]))
    [only] = level.streams
    assert only.sent == 3
    assert only.offered_per_second == 3 / 4
    assert only.mean_ms == pytest.approx(20)
    assert level.seconds == 4
    assert level.load_factor == 0.5
    assert level.kind == "open_loop"


def test_the_rate_achieved_counts_replies_in_the_window_whenever_they_were_due() -> None:
    level = measure(replies([0.9, 2.0, 4.9], [0.2, 0.1, 0.2]))
    assert level.achieved_per_second == 2 / 4
    assert [part.completed for part in level.slices] == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_latency_counts_from_the_due_time_and_what_the_client_added_is_told_apart() -> None:
    level = measure(replies([1.0, 2.0], [0.05, 0.05], lag=0.01))
    assert level.streams[0].latency_ms(50) == pytest.approx(50)
    latencies = level.latencies
    assert latencies.end_to_end == pytest.approx(50)
    assert latencies.overhead == pytest.approx(10)
    assert latencies.container == latencies.model == pytest.approx(40)
    assert level.replied_ms == pytest.approx(40)
    assert level.network_ms is None


def test_a_level_that_was_stopped_counts_what_was_due_before() -> None:
    seen = replies([1.0, 2.0, 2.9, 3.1], [0.01, 0.02, 0.03, 9.0])
    level = load_level(PLAN, [stream()], seen, CLIENT, (EndReason("proven", "feasible"), 3.0))
    assert level.streams[0].sent == 3
    assert level.seconds == 2
    assert (level.ended, level.verdict) == ("proven", "feasible")


def test_a_warm_up_that_was_too_short_is_cut_off() -> None:
    due = np.linspace(1, 4.99, 400)
    latencies = np.where(due < 2, 0.5, 0.01) + np.random.default_rng(3).random(400) * 1e-3
    level = measure(replies(due.tolist(), latencies.tolist()))
    assert 2.4 < level.seconds < 3.05
    assert level.streams[0].latency_ms(99) < 20
    assert level.warnings == ()


def test_after_a_start_the_first_requests_count() -> None:
    due = [float(n) / 100 for n in range(100, 500)]
    latencies = [1.0] * 40 + [0.01] * 360
    cut = measure(replies(due, latencies))
    whole = measure(replies(due, latencies), replace(PLAN, cold=True))
    assert whole.streams[0].sent == 400 > cut.streams[0].sent
    assert whole.latency_ms(95) > 900 > cut.latency_ms(95)


def test_a_level_that_was_stopped_as_infeasible_shows_what_it_was_stopped_for() -> None:
    due = np.linspace(1, 1.99, 100)
    latencies = np.where(due < 1.45, 0.5, 0.01) + np.random.default_rng(3).random(100) * 1e-3
    seen = replies(due.tolist(), latencies.tolist())
    stopped = EndReason("45 late requests of bert, too many for 400 in all", "infeasible"), 2.0
    level = load_level(PLAN, [stream()], seen, CLIENT, stopped)
    assert level.seconds == 1.0, "nothing is cut as warm-up"
    assert level.streams[0].latency_ms(90) > 100
    assert "over the limit of 100 ms" in str(why_missed(level))
    assert limit_overshoot(level) > 0
    met = load_level(PLAN, [stream()], seen, CLIENT, (EndReason("it is quick"), 2.0))
    assert met.seconds < 1.0
    assert why_missed(met) is None


def test_a_verdict_that_the_percentile_does_not_show_has_its_reason() -> None:
    level = measure(replies([1.0, 2.0, 3.0], [0.05] * 3))
    late = replace(level, verdict="infeasible", ended="proven to miss the limit")
    assert why_missed(late) == "proven to miss the limit"
    assert limit_overshoot(late) > 0
    assert knee_point(late, 1.0).log_excess > 0


def test_a_short_level_serves_no_more_than_is_offered() -> None:
    """A queue from before the window is answered within it."""
    due = np.linspace(0.0, 1.29, 130)
    done = np.maximum(due + 0.01, 1.0)
    stopped = EndReason("proven to miss the limit", "infeasible"), 1.3
    level = load_level(PLAN, [stream()], replies(due.tolist(), (done - due).tolist()), CLIENT,
                       stopped)  # fmt: skip
    assert level.seconds == pytest.approx(0.3)
    assert sum(part.completed for part in level.slices) > level.streams[0].sent
    assert level.achieved_per_second == level.offered_per_second == pytest.approx(100, rel=0.05)


def test_no_failed_request_is_warm_up() -> None:
    due = np.linspace(1, 4.99, 400)
    latencies = np.where(due < 2, 0.5, 0.01) + np.random.default_rng(3).random(400) * 1e-3
    level = measure(replies(due.tolist(), latencies.tolist(), {5: "UNAVAILABLE: gone"}))
    assert (level.seconds, level.errors) == (4, 1)


def test_a_level_that_never_settles_gives_an_interval_and_a_warning_with_the_remedy() -> None:
    due = np.linspace(1, 4.99, 400)
    level = measure(replies(due.tolist(), (due / 10).tolist()))
    assert level.streams[0].latency(95).low_ms > 0
    [warning] = level.warnings
    assert "make measurement.check_seconds longer" in warning


def test_failed_requests_count_with_the_timeout_and_the_first_message_is_kept() -> None:
    seen = replies([0.5, 2.0, 3.0, 4.0], [0.001] * 4, {0: "warm-up", 2: "second", 3: "third"})
    [only] = measure(seen).streams
    assert (only.sent, only.completed, only.errors) == (3, 1, 2)
    assert only.first_error == "second"
    assert only.latency_ms(99) == 3_000
    assert only.achieved_per_second == 1 / 4


FULL = "UNAVAILABLE: [request id: <id_unknown>] Exceeds maximum queue size"
LATE = "UNAVAILABLE: Request timeout expired"


def test_rejected_requests_are_no_errors_and_miss_the_limit() -> None:
    due, errors = np.linspace(1, 4.95, 80).tolist(), {3: FULL, 40: LATE, 60: "UNAVAILABLE: gone"}
    level = measure(replies(due, [0.01] * 80, errors))
    [only] = level.streams
    assert (only.sent, only.completed, only.rejected, only.errors) == (80, 77, 2, 1)
    assert only.first_error == "UNAVAILABLE: gone"
    assert only.latency_ms(99) == 3_000
    verdict = "1 of 80 requests failed: UNAVAILABLE: gone"
    assert level_verdict(level) == (
        f"limit missed: {verdict}; 2 of 80 requests rejected by the queue policy"
    )


def test_the_limits_are_met_while_few_requests_are_rejected() -> None:
    due = np.linspace(1, 4.99, 400).tolist()
    few = measure(replies(due, [0.01] * 400, dict.fromkeys(range(0, 400, 11), FULL)))
    # 37 is above two sigma of 400 arrivals: they would count as a backlog.
    assert (few.rejected, few.meets_limits, why_missed(few)) == (37, True, None)
    many = measure(replies(due, [0.01] * 400, dict.fromkeys(range(0, 400, 9), FULL)))
    assert not many.meets_limits
    assert str(why_missed(many)).startswith("p90 of main 3000.0 ms, over the limit of 100 ms")


def test_a_level_of_nothing_but_rejections_is_a_failure() -> None:
    level = measure(replies([1.0, 2.0], [0.01] * 2, {0: FULL, 1: FULL}))
    with pytest.raises(LoadTestFailure, match="every request failed: the queue policy rejected it"):
        refuse_if_all_failed(level)


def test_the_limits_own_percentile_is_among_those_kept() -> None:
    [only] = measure(replies([1.0, 2.0], [0.05, 0.2])).streams
    assert [item.percentile for item in only.latencies] == [50, 90, 95, 99]
    assert only.limit_overshoot == pytest.approx(1.0)


def test_saturation_is_a_load_factor_over_all_streams() -> None:
    plan = LevelPlan(ClosedLoop(2), warmup_seconds=0, seconds=1, timeout_seconds=1)
    streams = [stream("a", 30.0), stream("b", 10.0)]
    seen = replies([0.1, 0.2, 0.3, 0.4], [0.1] * 4, streams=[0, 0, 0, 1])
    level = load_level(plan, streams, seen, CLIENT)
    assert level.kind == "saturation"
    assert [item.achieved_per_second for item in level.streams] == [3, 1]
    assert level.load_factor == 4 / 40


def test_a_server_that_refused_everything_is_a_failure_with_its_message() -> None:
    seen = replies([0.1, 0.2], [0.0, 0.0], {0: "first", 1: "UNAVAILABLE: refused"})
    gone = Replies(
        seen.streams,
        seen.due_seconds,
        seen.sent_seconds,
        seen.done_seconds,
        seen.errors,
        refused_at_seconds=1.1,
    )
    with pytest.raises(LoadTestFailure, match=r"1\.1 s into a level: UNAVAILABLE: refused"):
        measure(gone)


def test_a_stream_without_a_request_is_a_failure_that_names_it() -> None:
    with pytest.raises(LoadTestFailure, match="stream 'main': no request was due in 4 s"):
        measure(replies([0.5], [0.1]))


def test_a_hung_server_is_named_where_it_left_nothing_to_measure() -> None:
    seen = replies([0.0], [3.0], {0: "DEADLINE_EXCEEDED: too late"})
    with pytest.raises(LoadTestFailure, match="an earlier one failed: DEADLINE_EXCEEDED"):
        measure(seen)


@given(st.lists(st.tuples(st.floats(0, 4.99), st.floats(0, 3), st.booleans()), min_size=1))
def test_every_request_is_either_good_or_an_error(
    requests: list[tuple[float, float, bool]],
) -> None:
    requests = [*sorted(requests), (4.995, 0.1, True)]
    errors = {index: "failed" for index, (_, _, good) in enumerate(requests) if not good}
    level = measure(replies([r[0] for r in requests], [r[1] for r in requests], errors))
    [only] = level.streams
    assert only.sent == only.completed + only.errors
    assert (only.first_error is None) == (only.errors == 0)
    assert len(level.slices) == SLICES
    # A reply is noted at due + latency, so the last bit of the difference is rounding.
    assert all(p.value_ms <= 3_000 + 1e-6 for p in only.latencies)
