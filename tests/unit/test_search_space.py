from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from optimizer.configuration.conditions import ConditionError, evaluate
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import MAX_POINTS, EmptySpaceError, Limits
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.parameter_definition import Value, label
from optimizer.configuration.parameters import preferred_sizes
from optimizer.configuration.runtimes import PRECISIONS_OF, RUNTIME_PACKAGE, Runtime
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    PRECISION_RANK,
    ArtifactSpec,
    Batching,
    ModelServing,
    ServingConfig,
)
from tests.unit.studies import HARDWARE, VALUES, four_points, small_space

T = TypeVar("T")

# A space takes milliseconds to make, so there are fewer examples than usual, of small spaces.
few = settings(max_examples=15)


def lists_of(
    values: st.SearchStrategy[T], always: tuple[T, ...] = ()
) -> st.SearchStrategy[tuple[T, ...]]:
    """One or two distinct values, `always` among them."""
    lists = st.lists(values, min_size=0 if always else 1, max_size=2 - len(always))
    return lists.map(lambda found: tuple(dict.fromkeys([*found, *always])))


sizes = st.lists(st.integers(1, 16), min_size=1, max_size=2, unique=True).map(
    lambda found: tuple(sorted(found))
)
any_values = st.fixed_dictionaries(
    {
        "runtime": lists_of(st.sampled_from(sorted(RUNTIME_PACKAGE))),
        "precision": lists_of(
            st.sampled_from(sorted({*PRECISION_RANK} - {"as_deployed"})), ("fp32",)
        ),
        "batching": lists_of(st.booleans()),
        "max_batch_size": lists_of(st.integers(1, 16)),
        "preferred_batch_sizes": lists_of(st.sampled_from(["half", "powers"]) | sizes, ("none",)),
        "max_queue_delay_us": lists_of(st.integers(0, 1000)),
        "instance_count": lists_of(st.integers(1, 4), (1,)),
        "intra_op_threads": lists_of(st.integers(1, 4), (1,)),
        "padding": lists_of(st.just("max") | sizes),
    }
)
any_conditions = st.sampled_from(
    [
        (),
        (),
        ("batching or max_queue_delay_us == 0 or instance_count == 1",),
        ("precision != 'int8' or runtime == 'openvino'", "instance_count <= cores"),
        ("max_batch_size * instance_count <= 16 or not batching",),
    ]
)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces that hold at least one point."""
    values: dict[str, Any] = draw(any_values)
    parameters = parameters_in_order("bert", values)
    hardware = Hardware(draw(st.integers(1, 4)), 24_000)
    return SearchSpace(parameters, hardware, Limits(draw(any_conditions)))


def points_of(space: SearchSpace) -> list[tuple[int, ...]]:
    return [space.at(row) for row in range(len(space))]


def chosen(space: SearchSpace, point: Sequence[int]) -> dict[str, Value]:
    pairs = zip(space.parameters, point, strict=True)
    return {p.name: p.values[at] for p, at in pairs}


def only_model(config: ServingConfig) -> ModelServing:
    (model,) = config.models
    return model


@few
@given(spaces())
def test_each_point_is_another_configuration(space: SearchSpace) -> None:
    configs = {space.config(point) for point in points_of(space)}
    assert len(configs) == len(space)
    assert len({config.digest for config in configs}) == len(space)


@few
@given(spaces())
def test_a_point_is_found_again_by_its_configuration(space: SearchSpace) -> None:
    for point in points_of(space):
        assert space.position_of(space.config(point)) == point


@few
@given(spaces())
def test_a_space_that_was_used_goes_to_another_process(space: SearchSpace) -> None:
    config = space.config(space.baseline)
    assert space.position_of(config) == space.baseline
    assert pickle.loads(pickle.dumps(space)).config(space.baseline) == config


@few
@given(spaces())
def test_a_point_is_found_again_by_its_row(space: SearchSpace) -> None:
    assert [space.row_of[space.at(row)] for row in range(len(space))] == [*range(len(space))]
    assert len(space.row_of) == len(space)


def test_a_configuration_from_elsewhere_has_no_point() -> None:
    space = small_space(precision=("fp32",))
    other = small_space(precision=("int8",))
    assert space.position_of(other.config(other.at(0))) is None


@few
@given(spaces())
def test_every_point_can_be_served(space: SearchSpace) -> None:
    for point in points_of(space):
        model = only_model(space.config(point))
        (group,) = model.groups
        assert model.artifact.precision in PRECISIONS_OF["KIND_CPU"][model.artifact.runtime]
        assert group.count * group.threads <= space.hardware.cores
        if model.batching is None:
            assert model.max_batch_size == 1
        else:
            assert model.max_batch_size > 1
            assert all(1 <= n <= model.max_batch_size for n in model.batching.preferred_batch_sizes)


@few
@given(spaces())
def test_every_point_meets_every_condition(space: SearchSpace) -> None:
    for point in points_of(space):
        values = chosen(space, point)
        assert all(holds(condition, space, values) for condition in space.limits.conditions)


@few
@given(spaces())
def test_no_configuration_that_meets_the_rules_is_missing(space: SearchSpace) -> None:
    """Against a count that knows nothing of tables: every combination, one at a time."""
    configs = {space.config(point) for point in points_of(space)}
    for values in itertools.product(*(p.values for p in space.parameters)):
        one: dict[str, Value] = {
            p.name: value for p, value in zip(space.parameters, values, strict=True)
        }
        position = tuple(
            p.values.index(value) for p, value in zip(space.parameters, values, strict=True)
        )
        model = space.models[0].serving(position)
        if meets_rules(space, one, model):
            assert ServingConfig((model,)) in configs


def meets_rules(space: SearchSpace, values: Mapping[str, Value], model: ModelServing) -> bool:
    (group,) = model.groups
    preferred = model.batching.preferred_batch_sizes if model.batching is not None else ()
    return (
        model.artifact.precision in PRECISIONS_OF["KIND_CPU"][model.artifact.runtime]
        and all(1 <= size <= model.max_batch_size for size in preferred)
        and group.count * group.threads <= space.hardware.cores
        and all(holds(condition, space, values) for condition in space.limits.conditions)
    )


def holds(condition: str, space: SearchSpace, values: Mapping[str, Value]) -> bool:
    labels = {name: label(value) for name, value in values.items()}
    return bool(eval(condition, {"cores": space.hardware.cores, **labels}))


@few
@given(spaces())
def test_the_nearest_point_to_a_valid_one_is_itself(space: SearchSpace) -> None:
    for point in points_of(space):
        assert space.nearest(point) == point


def any_position(space: SearchSpace) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, len(p.values) - 1) for p in space.parameters))


@few
@given(spaces(), st.data())
def test_the_nearest_point_is_valid_and_always_the_same(
    space: SearchSpace, data: st.DataObject
) -> None:
    position = data.draw(any_position(space))
    nearest = space.nearest(position)
    assert nearest in points_of(space)
    again = SearchSpace(space.parameters, space.hardware, space.limits)
    assert again.nearest(position) == nearest


@few
@given(spaces(), st.data())
def test_no_point_is_nearer_than_the_nearest(space: SearchSpace, data: st.DataObject) -> None:
    position = data.draw(any_position(space))
    nearest = space.nearest(position)
    assert nearest is not None
    least = min(steps_away(space, point, position) for point in points_of(space))
    assert steps_away(space, nearest, position) == pytest.approx(least)


def test_the_first_of_equally_near_points_is_taken() -> None:
    """Whichever of its neighbours a point that cannot be served lies between."""
    space = small_space(
        runtime=("pytorch", "openvino", "onnxruntime"), precision=("fp32", "fp16", "int8", "bf16")
    )
    points = points_of(space)
    for runtime, precision, count in itertools.product(range(3), range(4), range(2)):
        wanted = [runtime, precision, 1, 1, 0, 1, count, 1, *[0] * (len(space.parameters) - 8)]
        away = [steps_away(space, point, wanted) for point in points]
        assert space.nearest(wanted) == points[away.index(min(away))]


def steps_away(space: SearchSpace, point: Sequence[int], other: Sequence[int]) -> float:
    pairs = zip(space.parameters, point, other, strict=True)
    return sum(
        abs(a - b) / max(1, len(parameter.values) - 1) if parameter.ordinal else float(a != b)
        for parameter, a, b in pairs
    )


@few
@given(spaces(), st.data())
def test_the_nearest_point_is_none_of_those_excluded(
    space: SearchSpace, data: st.DataObject
) -> None:
    position = data.draw(any_position(space))
    excluded: set[tuple[int, ...]] = set()
    for _ in range(min(5, len(space))):
        found = space.nearest(position, excluding=excluded)
        assert found is not None
        assert found not in excluded
        excluded.add(found)


def test_where_every_point_is_excluded_none_is_nearest() -> None:
    space = four_points()
    points = points_of(space)
    assert space.nearest(points[0], excluding=points) is None
    assert space.nearest(points[0], excluding=points[:-1]) == points[-1]


@few
@given(spaces(), st.data())
def test_without_an_artefact_no_point_needs_it(space: SearchSpace, data: st.DataObject) -> None:
    dropped = data.draw(st.sampled_from(space.artifacts))
    rest = space.without([dropped])
    kept = {c for p in points_of(space) if only_model(c := space.config(p)).artifact != dropped}
    if not kept:
        with pytest.raises(EmptySpaceError, match=re.escape(f"{dropped.label} is excluded")):
            len(rest)
        return
    assert {rest.config(point) for point in points_of(rest)} == kept
    assert set(rest.artifacts) == set(space.artifacts) - {dropped}


def test_a_second_artefact_leaves_after_the_first() -> None:
    space = small_space()
    labels = [spec.label for spec in space.artifacts]
    assert labels == ["bert/pytorch/fp32", "bert/openvino/fp32", "bert/openvino/int8"]
    rest = space.without(space.artifacts[:1]).without(space.artifacts[1:2])
    assert [spec.label for spec in rest.artifacts] == ["bert/openvino/int8"]


@few
@given(spaces())
def test_the_artefacts_are_those_of_the_points_and_begin_with_the_baselines(
    space: SearchSpace,
) -> None:
    needed = {only_model(space.config(point)).artifact for point in points_of(space)}
    assert set(space.artifacts) == needed
    assert len(space.artifacts) == len(needed)
    assert space.artifacts[0] == only_model(space.config(space.baseline)).artifact


def test_the_baseline_is_triton_with_nothing_changed() -> None:
    space = small_space(
        runtime=("onnxruntime", "openvino", "pytorch"),
        precision=("int8", "bf16", "fp32"),
        batching=(True, False),
        max_queue_delay_us=(500, 0),
        preferred_batch_sizes=("half", "none"),
        padding=((16, 32), "max"),
    )
    model = only_model(space.config(space.baseline))
    assert model.artifact == ArtifactSpec("bert", "pytorch", "python", "fp32")
    assert (model.batching, model.max_batch_size) == (None, 1)
    assert [(group.count, group.threads) for group in model.groups] == [(1, 2)]


@few
@given(spaces())
def test_the_baseline_is_a_point_with_the_highest_precision_that_can_be(
    space: SearchSpace,
) -> None:
    assume(not space.limits.conditions)
    model = only_model(space.config(space.baseline))
    listed = next(p.values for p in space.parameters if p.name == "precision")
    best = max(cast(tuple[Precision, ...], listed), key=lambda p: PRECISION_RANK[p])
    runtimes = cast(
        tuple[Runtime, ...], next(p.values for p in space.parameters if p.name == "runtime")
    )
    if any(best in PRECISIONS_OF["KIND_CPU"][runtime] for runtime in runtimes):
        assert model.artifact.precision == best


def test_the_baseline_has_the_listed_values_nearest_to_the_defaults() -> None:
    space = small_space(
        hardware=Hardware(8, 24_000),
        runtime=("openvino", "onnxruntime"),
        precision=("int8", "bf16"),
        batching=(True,),
        max_batch_size=(16, 32, 4),
        max_queue_delay_us=(500, 100),
        instance_count=(4, 2),
        intra_op_threads=(1, 4),
    )
    model = only_model(space.config(space.baseline))
    assert model.artifact == ArtifactSpec("bert", "openvino", "python", "bf16")
    assert (model.max_batch_size, model.batching) == (4, Batching((), 100))
    assert [(group.count, group.threads) for group in model.groups] == [(2, 4)]


def one_of_each(**values: Sequence[Value]) -> SearchSpace:
    """A space of the first value of everything else."""
    first = {name: listed[:1] for name, listed in VALUES.items()}
    return SearchSpace(parameters_in_order("bert", {**first, **values}), HARDWARE)


def test_settings_without_effect_do_not_multiply_the_points() -> None:
    off = one_of_each(
        batching=(False,),
        max_batch_size=(1, 2, 4, 8),
        preferred_batch_sizes=("none", "half", "powers", (2, 4)),
        max_queue_delay_us=(0, 1, 2),
    )
    assert len(off) == 1
    assert len(one_of_each(batching=(False, True), max_batch_size=(1,))) == 1


def test_preferring_only_the_largest_batch_is_preferring_none() -> None:
    space = one_of_each(batching=(True,), preferred_batch_sizes=("none", (4,), "half", (2,)))
    batchings = [only_model(space.config(p)).batching for p in points_of(space)]
    assert batchings == [Batching(()), Batching((2,))]


def test_preferred_sizes_do_not_matter_where_nothing_is_batched() -> None:
    space = small_space(
        batching=(False,), max_batch_size=(1,), preferred_batch_sizes=("half", (32,))
    )
    assert {only_model(space.config(p)).batching for p in points_of(space)} == {None}


@pytest.mark.parametrize(
    ("value", "largest", "wanted"),
    [
        ("none", 16, ()),
        ("half", 16, (8,)),
        ("half", 3, (1,)),
        ("powers", 16, (2, 4, 8, 16)),
        ("powers", 12, (2, 4, 8)),
        ("powers", 2, ()),
        ("powers", 1, ()),
        ((4, 8), 16, (4, 8)),
        ((16,), 16, ()),
    ],
)
def test_preferred_sizes(value: Value, largest: int, wanted: tuple[int, ...]) -> None:
    assert preferred_sizes(value, largest) == wanted


def test_warmup_covers_a_single_request_and_the_largest_batch() -> None:
    space = small_space()
    models = [only_model(space.config(point)) for point in points_of(space)]
    warm = {(model.max_batch_size, model.warmup_batch_sizes) for model in models}
    assert warm == {(1, (1,)), (4, (1, 4)), (8, (1, 8)), (16, (1, 16))}


def test_numbers_ascend_and_other_values_keep_their_order() -> None:
    space = small_space(
        max_batch_size=(16, 4, 8), runtime=("pytorch", "onnxruntime"), batching=(True, False)
    )
    values = {p.name: p.values for p in space.parameters}
    assert values["max_batch_size"] == (4, 8, 16)
    assert values["runtime"] == ("pytorch", "onnxruntime")
    assert values["batching"] == (True, False)
    assert [p.key for p in space.parameters][:2] == ["bert.runtime", "bert.precision"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            small_space(runtime=("pytorch",), precision=("int8",)),
            "no combination of values is left by the rule: the runtime serves the precision",
        ),
        (
            small_space(instance_count=(4,)),
            "no combination of values is left by the rule: "
            "instance_count * intra_op_threads <= cores",
        ),
        (
            small_space(batching=(True,), preferred_batch_sizes=((32,),)),
            "no combination of values is left by the rule: "
            "preferred_batch_sizes are from 1 to max_batch_size",
        ),
        (
            small_space(conditions=("batching", "not batching")),
            "no combination of values is left by the rule: not batching",
        ),
    ],
)
def test_an_empty_space_names_the_rule_that_leaves_nothing(
    space: SearchSpace, message: str
) -> None:
    with pytest.raises(EmptySpaceError) as caught:
        len(space)
    assert str(caught.value) == message


def test_a_huge_space_is_refused_with_its_size_and_not_built() -> None:
    space = small_space(max_queue_delay_us=tuple(range(10**6)))
    with pytest.raises(EmptySpaceError, match=r"at most 1,000,000 combinations, got 96,000,000"):
        len(space)
    assert MAX_POINTS == 10**6


TABLE = small_space().models[0].table()


@pytest.mark.parametrize(
    ("condition", "rule"),
    [
        ("batch_size > 4", r"must be a comparison of runtime, .*cores, gpus \(.*batch_size"),
        ("instance_count >", "must be a comparison"),
        ("instance_count + 1", "must be true or false for every point"),
        ("runtime", "must be true or false for every point"),
        ("instance_count = 2", "must be a comparison"),
        ("True", "must be true or false for every point"),
        ("@instance_count > 1", "must be a comparison"),
        ("().__class__", r"'\(\).__class__' is not allowed"),
        ("cores.to_csv('/tmp/x') or batching", "is not allowed"),
        ("cores.to_frame().eval('1')", "is not allowed"),
        ("__import__('os').system('true') == 0", "is not allowed"),
        ("(lambda: batching)()", "is not allowed"),
        ("[batching for cores in [1]]", "is not allowed"),
        ("f'{cores}' == '2'", "is not allowed"),
        ("runtime[0] == 'p'", "is not allowed"),
        ("(cores := 2) > 1", "is not allowed"),
        ("cores == None", "is not allowed"),
        ("runtime * 1000000000 == 'x'", "arithmetic needs numbers"),
        ("9 ** 9 ** 9 > cores", "an exponent must be"),
        ("10 ** 16 * cores > 1", "numbers must be from"),
        ("9" * 900 + " > cores", "numbers must be from|int"),
        ("cores // 0 > 1 // 0", "division by zero|float floor division by zero"),
        ("runtime in 'pytorch'", "must be a list"),
        ("[1] == cores", "a list goes only on the right"),
        ("cores in [cores]", "a list must contain only numbers and texts"),
        ("cores or batching", "'cores' is neither true nor false"),
        ("(" * 30 + "-" * 30 + "1" + ")" * 30 + " < cores", "nested too deeply"),
        ("(" * 400 + "1" + ")" * 400 + " < cores", "too many nested parentheses|nested too deeply"),
        ("batching or " * 100 + "batching", "at most 1000 characters"),
        ("batching\0", "must be a comparison"),
        ("", "must be a comparison"),
        ("runtime > 4", "must be a comparison"),
    ],
)
def test_what_is_no_condition_is_refused(condition: str, rule: str) -> None:
    with pytest.raises(ConditionError, match=rule) as caught:
        evaluate(condition, TABLE)
    assert caught.value.args[1] == condition


@pytest.mark.parametrize(
    ("condition", "share"),
    [
        ("instance_count <= cores", 1.0),
        ("instance_count > cores", 0.0),
        ("batching", 0.5),
        ("not batching or max_queue_delay_us == 0", 0.75),
        ("runtime == 'pytorch' and precision in ['fp32', 'bf16']", 0.25),
        ("max_batch_size > 4 & instance_count == 1", 1 / 3),
        ("~batching | max_queue_delay_us == 0", 0.75),
        ("4 < max_batch_size <= 8", 1 / 3),
        ("max_batch_size not in (4, 2 ** 3)", 1 / 3),
        ("-max_batch_size // 8 * 8 % 7 + 1 - 1 / 2 < cores ** 2 + 2", 1 / 3),
        ("padding == 'max' and preferred_batch_sizes != 4", 1.0),
    ],
)
def test_what_a_condition_keeps(condition: str, share: float) -> None:
    assert np.mean(evaluate(condition, TABLE)) == pytest.approx(share)


def test_every_wrong_condition_is_found() -> None:
    wrong = ("nonsense == 1", "instance_count", "batching")
    found = [error.args[1] for error in small_space(conditions=wrong).check_conditions()]
    assert found == ["nonsense == 1", "instance_count"]


@few
@given(spaces())
def test_a_space_is_the_same_when_made_again(space: SearchSpace) -> None:
    again = SearchSpace(space.parameters, space.hardware, space.limits)
    assert np.array_equal(again.points, space.points)
    assert again.baseline == space.baseline


@few
@given(spaces(), st.data())
def test_a_failing_batch_leaves_with_the_points_that_reach_it(
    space: SearchSpace, data: st.DataObject
) -> None:
    spec = data.draw(st.sampled_from(space.artifacts))
    sizes = space.use_of(spec).max_batch_sizes
    failing = data.draw(st.sampled_from(sizes))
    rest = space.without_batches({spec: failing})
    kept = {
        c
        for p in points_of(space)
        if (m := only_model(c := space.config(p))).artifact != spec or m.max_batch_size < failing
    }
    if not kept:
        with pytest.raises(EmptySpaceError, match=f"{spec.label} is below {failing}"):
            len(rest)
        return
    assert {rest.config(point) for point in points_of(rest)} == kept


@few
@given(spaces())
def test_the_use_of_an_artefact_is_that_of_its_points(space: SearchSpace) -> None:
    for spec in space.artifacts:
        own = [m for p in points_of(space) if (m := only_model(space.config(p))).artifact == spec]
        use = space.use_of(spec)
        assert set(use.max_batch_sizes) == {model.max_batch_size for model in own}
        assert set(use.paddings) == {model.padding for model in own}
