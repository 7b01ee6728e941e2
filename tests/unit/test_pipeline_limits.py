"""Where the time of a pipeline goes and what limits it, on cases that were computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from optimizer.analysis.pipeline_limits import PipelineLimits, pipeline_limits, with_measured
from optimizer.configuration.model_graph import ComposedKind, ComposedModel, ModelGraph, Step
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.measurement.level import BatchPoint, LevelKind, LoadLevel, ServerSplit
from optimizer.measurement.resource_use import MachineUse
from optimizer.report.pipeline_tables import breakdowns, limit_sentences, step_times_ms
from optimizer.study.pipeline_times import PipelineTimes, pipeline_times
from tests.unit.studies import level, measured, ok, record_of

ONE = (BatchPoint(1, 100, 2.0),)


def serving(name: str, instances: int = 1, largest: int = 1) -> ModelServing:
    spec = ArtifactSpec(name, "repository", "python", "as_deployed")
    batching = Batching() if largest > 1 else None
    return ModelServing(name, spec, largest, batching, (InstanceGroup("KIND_CPU", instances),))


def pipeline(
    steps: Sequence[Step], kind: ComposedKind = "ensemble", **models: ModelServing
) -> ServingConfig:
    names = dict.fromkeys(step.model for step in steps)
    own = tuple(models.get(name, serving(name)) for name in names)
    graph = ModelGraph((ComposedModel("top", kind, tuple(steps)),))
    return ServingConfig((*own, serving("top")), graph)


def split(
    model: str,
    queue_ms: float = 1.0,
    batches: tuple[BatchPoint, ...] = ONE,
    *,
    requests: int = 100,
    io_ms: float = 0.0,
) -> ServerSplit:
    """A step whose requests hold one inference each."""
    inferences = sum(point.inferences for point in batches)
    infer_ms = sum(point.inferences * point.compute_ms for point in batches) / inferences
    return ServerSplit(model, requests, queue_ms, io_ms, infer_ms, io_ms, batches, step=True)


def top(request_ms: float, *, infer_ms: float = 0.0, bls: bool = False) -> ServerSplit:
    batches = (BatchPoint(1, 100, infer_ms),)
    return ServerSplit(
        "top", 100, 0.0, 0.0, infer_ms, 0.0, batches, ensemble=not bls, request_ms=request_ms
    )


def load(
    splits: Sequence[ServerSplit],
    per_second: float,
    *,
    kind: LevelKind = "open_loop",
    replied_ms: float | None = None,
) -> LoadLevel:
    """A level with the statistics of 100 requests to the pipeline."""
    made = level(per_second / 500, kind=kind)
    return replace(made, server=tuple(splits), replied_ms=replied_ms)


def times_of(config: ServingConfig, made: LoadLevel) -> PipelineTimes:
    times = pipeline_times(config, "top", made)
    assert times is not None
    return times


def limits_of(config: ServingConfig, *splits: ServerSplit, per_second: float) -> PipelineLimits:
    made = load([*splits, top(10.0)], per_second, kind="saturation")
    limits = pipeline_limits(config, "top", made)
    assert limits is not None
    return limits


def parts(times: PipelineTimes) -> Mapping[str, float]:
    return {step.model: step.path_ms for step in times.steps}


CHAIN = (Step("a"), Step("b", (0,)))


def test_the_steps_of_a_chain_add_up_and_the_rest_is_between_them() -> None:
    # a: 1 + 2 ms; b: 3 + 4 + 2 x 0.5 ms; of 12 ms from sending to reply.
    slow = split("b", 3.0, (BatchPoint(1, 100, 4.0),), io_ms=0.5)
    times = times_of(pipeline(CHAIN), load([split("a"), slow, top(11.5)], 50, replied_ms=12.0))
    assert parts(times) == pytest.approx({"a": 3.0, "b": 8.0})
    assert times.rest_ms == pytest.approx(1.0)
    assert [times.share(step) for step in times.steps] == pytest.approx([3 / 12, 8 / 12])
    # 50 requests/s of 2 ms, and of 4 ms with input and output.
    assert [step.busy for step in times.steps] == pytest.approx([0.1, 0.25])
    assert step_times_ms(times) == pytest.approx(
        {
            "a: queue": 1.0,
            "a: compute": 2.0,
            "b: queue": 3.0,
            "b: compute": 5.0,
            "between steps, network, protocol": 1.0,
        }
    )


def test_of_branches_the_longer_one_takes_the_time() -> None:
    steps = (Step("a"), Step("b", (0,)), Step("c", (0,)), Step("d", (1, 2)))
    splits = [
        split("a"),
        split("b", 10.0),
        split("c", 1.0, (BatchPoint(1, 100, 20.0),)),
        split("d", 0.0),
    ]
    times = times_of(pipeline(steps), load([*splits, top(27.0)], 10, replied_ms=28.0))
    # a 3, then b 12 beside c 21, then d 2: b is not waited for.
    assert parts(times) == pytest.approx({"a": 3.0, "b": 0.0, "c": 21.0, "d": 2.0})
    assert times.rest_ms == pytest.approx(2.0)
    shown = breakdowns(pipeline(steps), load([*splits, top(27.0)], 10, replied_ms=28.0), [])
    [table] = [table for own in shown for table in own.tables()]
    assert table.rows[1] == ("b", "10.00", "2.00 (0.00 / 2.00 / 0.00)", "0.00", "0%", "2% of 1")
    assert table.notes, "it says why b has no share"


def test_a_model_that_is_called_twice_counts_with_both_calls() -> None:
    steps = (Step("a"), Step("b", (0,)), Step("a", (1,)))
    twice = split("a", 1.0, (BatchPoint(1, 200, 2.0),), requests=200)
    times = times_of(pipeline(steps), load([twice, split("b"), top(10.0)], 100, replied_ms=10.0))
    assert parts(times) == pytest.approx({"a": 6.0, "b": 3.0})
    [first, _] = times.steps
    assert (first.calls, first.queue_ms, first.busy) == pytest.approx((2.0, 2.0, 0.4))


def test_a_bls_model_waits_for_its_steps_and_is_occupied_meanwhile() -> None:
    steps = (Step("a", calls=0.5), Step("b", (0,)))
    half = split("a", 1.0, (BatchPoint(1, 50, 2.0),), requests=50)
    config = pipeline(steps, "bls")
    # Its 10 ms hold half a call of 3 ms and one of 3 ms.
    made = load([half, split("b"), top(10.0, infer_ms=10.0, bls=True)], 80, replied_ms=11.0)
    times = times_of(config, made)
    assert parts(times) == pytest.approx({"a": 1.5, "b": 3.0, "top": 5.5})
    assert times.steps[-1].infer_ms == pytest.approx(5.5)
    assert times.steps[-1].busy == pytest.approx(0.8)
    assert made.network_ms == pytest.approx(1.0), "its steps are in its own time"
    limits = pipeline_limits(config, "top", replace(made, kind="saturation"))
    assert limits is not None
    assert limits.bottleneck == "top"
    assert next(limit_sentences(limits)) == (
        "The bottleneck is top: its instances are busy for 80% of the time at saturation, the wait "
        "for its own steps included, those of the next, b, for 16%."
    )


def test_what_a_response_cache_answers_does_not_come_to_the_steps() -> None:
    # 3 of 4 requests: the steps' times count for a quarter of them.
    quarter = [split(name, 1.0, (BatchPoint(1, 25, 2.0),), requests=25) for name in ("a", "b")]
    times = times_of(pipeline(CHAIN), load([*quarter, top(1.6)], 100, replied_ms=2.0))
    assert parts(times) == pytest.approx({"a": 0.75, "b": 0.75})
    assert [(step.calls, step.busy) for step in times.steps] == [(0.25, 0.05)] * 2
    assert times.rest_ms == pytest.approx(0.5)


def test_beside_another_model_the_rate_and_the_time_are_of_the_pipeline_alone() -> None:
    config = pipeline(CHAIN)
    config = replace(config, models=(*config.models, serving("other")))
    other = replace(split("other", requests=300), step=False)
    splits = [split("a"), split("b"), top(6.5), other]
    times = times_of(config, load(splits, 400, replied_ms=20.0))
    # A quarter of the requests; their reply times are not distinguished from the other model's.
    assert times.per_second == pytest.approx(100)
    assert times.request_ms == pytest.approx(6.5)
    assert [step.model for step in times.steps] == ["a", "b"]


def test_an_ensemble_within_another_has_no_time_of_its_own() -> None:
    inner = ComposedModel("inner", "ensemble", CHAIN)
    outer = ComposedModel("top", "ensemble", (Step("inner"), Step("c", (0,))))
    models = tuple(map(serving, ("a", "b", "inner", "c", "top")))
    config = ServingConfig(models, ModelGraph((inner, outer)))
    within = replace(top(6.0), model="inner", step=True)
    splits = [split("a"), split("b"), within, split("c"), top(9.0)]
    assert parts(times_of(config, load(splits, 10, replied_ms=9.5))) == pytest.approx(
        {"a": 3.0, "b": 3.0, "c": 3.0}
    )


def test_the_busiest_step_is_the_bottleneck_and_an_instance_more_moves_it() -> None:
    # b: 400 requests/s in batches of 4 in 10 ms on one instance; a: 500; the pipeline gets 360.
    batches = (BatchPoint(4, 25, 10.0),)
    config = pipeline(CHAIN, b=serving("b", largest=4))
    limits = limits_of(config, split("a", 0.5), split("b", 9.0, batches), per_second=360)
    assert [step.busy for step in limits.times.steps] == pytest.approx([0.72, 0.9])
    assert limits.bottleneck == "b"
    assert limits.slowest.model == "b"
    assert limits.slowest.per_second == pytest.approx(400)
    assert limits.loss == pytest.approx(0.1)
    # b serves 360 in 90 % of the time, two of b 800, but a 500. One size shows no line.
    [more] = limits.widenings
    assert (more.change, more.next_limit) == ("2 instances", "a")
    assert more.per_second == pytest.approx(500)
    text = " ".join(limit_sentences(limits))
    assert "The bottleneck is b: its instances are busy for 90% of the time at saturation" in text
    assert "b, serves 400 requests/s in batches of 4 by its own executions" in text
    assert "the pipeline saturates at 360, 10% less." in text
    assert (
        "Computed and not measured, for b: 2 instances would saturate at 500 requests/s at most "
        "(+39%), where a limits." in text
    )


def test_larger_batches_continue_the_line_of_the_measured_ones() -> None:
    # 6 ms for 2 and 8 ms for 4: 12 ms for 8, which is 667/s instead of 500/s. b is busy for
    # 440/s x 2.2 ms, and would serve 454.5 without its waits.
    batches = (BatchPoint(2, 10, 6.0), BatchPoint(4, 20, 8.0))
    config = pipeline(CHAIN, b=serving("b", largest=4))
    limits = limits_of(config, split("a", batches=(BatchPoint(1, 100, 0.5),)),
                       split("b", 9.0, batches), per_second=440)  # fmt: skip
    widenings = {each.change: each for each in limits.widenings}
    assert widenings["max_batch_size 8"].per_second == pytest.approx(440 / 0.968 * 4 / 3)
    assert widenings["max_batch_size 8"].next_limit is None
    assert widenings["2 instances"].per_second == pytest.approx(440 / 0.968 * 2)


def test_batches_that_do_not_fill_need_no_larger_ones() -> None:
    batches = (BatchPoint(2, 30, 6.0), BatchPoint(4, 10, 8.0))
    config = pipeline(CHAIN, b=serving("b", largest=4))
    limits = limits_of(config, split("a", batches=(BatchPoint(1, 100, 0.5),)),
                       split("b", 9.0, batches), per_second=370)  # fmt: skip
    assert limits.bottleneck == "b"
    assert [each.change for each in limits.widenings] == ["2 instances"]


def test_two_busy_steps_or_idle_ones_are_no_bottleneck() -> None:
    alike = limits_of(pipeline(CHAIN), split("a"), split("b"), per_second=450)
    assert alike.bottleneck is None
    assert alike.widenings == ()
    assert "No single step is the bottleneck: instances of a are busy for 90%" in next(
        limit_sentences(alike)
    )
    made = load([split("a", batches=(BatchPoint(1, 100, 0.5),)), split("b"), top(9.0)], 200,
                kind="saturation")  # fmt: skip
    used = MachineUse(2.0, 2, 3.8, 500.0, 0.0)
    idle = pipeline_limits(pipeline(CHAIN), "top", replace(made, machine=used))
    assert idle is not None
    assert idle.bottleneck is None
    assert next(limit_sentences(idle)) == (
        "No step is the bottleneck: the busiest instances, of b, are busy for 40% of the time at "
        "saturation; the server used 1.9 of 2 cores."
    )


def test_other_trials_show_what_a_wider_bottleneck_gives() -> None:
    config = pipeline(CHAIN)
    slow = split("b", 9.0, (BatchPoint(1, 100, 4.0),))
    limits = limits_of(config, split("a"), slow, per_second=240)
    assert limits.bottleneck == "b"
    both = pipeline(CHAIN, a=serving("a", 2), b=serving("b", 2))
    configs = (config, pipeline(CHAIN, b=serving("b", 2)), pipeline(CHAIN, b=serving("b", 3)), both)
    rates = (250.0, 400.0, 380.0, 900.0)
    trials = [
        record_of(n, own, replace(ok(rate), measurement=measured(rate / 1.05)))
        for n, (own, rate) in enumerate(zip(configs, rates, strict=True))
    ]
    wider = with_measured(limits, trials).widened
    assert [(each.trial, round(each.per_second)) for each in wider] == [(1, 400), (2, 380)]
    text = " ".join(limit_sentences(replace(limits, widened=wider)))
    assert "Trial 1 differs in this step alone (as deployed, no batching, 2 instances): it " in text


def test_what_was_not_saturated_or_has_no_statistics_has_no_limits() -> None:
    config = pipeline(CHAIN)
    made = load([split("a"), split("b"), top(9.0)], 100)
    assert pipeline_limits(config, "top", made) is None
    assert pipeline_times(config, "top", replace(made, server=())) is None
    assert breakdowns(config, None, [replace(made, server=())]) == []


def test_the_share_that_a_steps_cache_answered_is_shown() -> None:
    cached = replace(split("b"), cache_hits=75, cache_misses=25, expected_hit_rate=0.8)
    config = pipeline([Step("a"), Step("b", (0,))])
    [shown] = breakdowns(config, load([split("a"), cached, top(10.0)], 10), [])
    [table] = shown.tables()
    assert table.notes == (
        "The response cache answered 75.0% of the requests to b, 80.0% expected.",
    )
