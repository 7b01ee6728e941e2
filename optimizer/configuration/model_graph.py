"""Which models of a configuration are composed of which others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from typing import Literal

ComposedKind = Literal["ensemble", "bls"]
"""Triton's two kinds: an ensemble, or a model of the Python backend that calls others (BLS)."""


@dataclass(frozen=True)
class Step:
    """One call of a model by a composed model.

    Attributes:
        after: indices of the steps whose outputs it takes; empty where it starts with the request.
        calls: mean number of calls for each request of the composed model.
    """

    model: str
    after: tuple[int, ...] = ()
    calls: float = 1.0


@dataclass(frozen=True)
class ComposedModel:
    """A model that passes each request through other models.

    An ensemble has no instances and no batcher, and Triton loads its steps with it. A BLS model has
    both, and an instance is occupied while it waits for its steps.

    Attributes:
        steps: in the order of an ensemble's config.pbtxt, or of the calls of a BLS model. A model
            that is called twice is two steps.
    """

    name: str
    kind: ComposedKind
    steps: tuple[Step, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models of the steps, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps))

    def in_order(self) -> tuple[int, ...]:
        """Return the indices of the steps, each after those whose outputs it takes.

        Raises:
            ValueError: where a step takes the outputs of none of the steps, or steps wait for each
                other.
        """
        left, order = dict(enumerate(self.steps)), list[int]()
        while left:
            ready = [n for n, step in left.items() if {*step.after} <= {*order}]
            if not ready:
                names = ", ".join(step.model[:80] for step in left.values())
                raise ValueError(f"none of the steps {names} can be the first")
            order += ready
            left = {n: step for n, step in left.items() if n not in ready}
        return tuple(order)


def in_sequence(models: Iterable[str]) -> tuple[Step, ...]:
    """Return steps of which each takes the outputs of the one before it."""
    return tuple(Step(name, (n - 1,) if n else ()) for n, name in enumerate(models))


@dataclass(frozen=True)
class EarlierEnsemble:
    """An ensemble in studies that were written before there were BLS models."""

    name: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class ModelGraph:
    """The composed models among the models of a configuration.

    Attributes:
        composed: one that is a step of another comes before that.
        ensembles: of earlier studies, in place of `composed`; their steps are taken to follow each
            other.
    """

    composed: tuple[ComposedModel, ...] = ()
    ensembles: InitVar[tuple[EarlierEnsemble, ...]] = ()

    def __post_init__(self, ensembles: tuple[EarlierEnsemble, ...]) -> None:
        """Read the form of earlier studies."""
        if ensembles:
            read = (ComposedModel(e.name, "ensemble", in_sequence(e.steps)) for e in ensembles)
            object.__setattr__(self, "composed", tuple(read))

    @property
    def names(self) -> frozenset[str]:
        """Names of the composed models."""
        return frozenset(each.name for each in self.composed)

    @property
    def ensemble_names(self) -> frozenset[str]:
        """Names of the ensembles, which have no instances and no batcher."""
        return frozenset(each.name for each in self.composed if each.kind == "ensemble")

    @property
    def bls_names(self) -> frozenset[str]:
        """Names of the models that call others from an instance of their own."""
        return self.names - self.ensemble_names

    @property
    def step_names(self) -> frozenset[str]:
        """Names of the models that get requests from a composed model."""
        return frozenset(name for each in self.composed for name in each.models)

    def steps_of(self, name: str) -> tuple[Step, ...]:
        """Return the steps of a model; none where it is not composed."""
        return next((each.steps for each in self.composed if each.name == name), ())

    def below(self, name: str) -> frozenset[str]:
        """Return the names of all models that a model is composed of, directly or not."""
        own = frozenset(step.model for step in self.steps_of(name))
        return own.union(*map(self.below, own))

    def loads(self, models: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each model that a server is asked to load, and those that it loads with it.

        Triton loads the steps of an ensemble with the ensemble, even those that are loaded already.
        It does not know what a BLS model calls.

        Args:
            models: all names, each after its steps.
        """
        steps = {each.name: {*each.models} for each in self.composed if each.kind == "ensemble"}
        with_ensembles = frozenset[str]().union(*steps.values())

        def brought(name: str) -> set[str]:
            own = steps.get(name, set())
            return own.union(*map(brought, own))

        for name in models:
            if name not in with_ensembles:
                together = brought(name)
                yield name, tuple(each for each in models if each in together)

    def check(self, models: Collection[str]) -> None:
        """Check that a graph fits the models: each composed model comes after its steps.

        Raises:
            ValueError: with the first rule that is broken.
        """
        before = {*models} - self.names
        for each in self.composed:
            for step in each.steps:
                if step.model not in before:
                    rule = "is no model before the one that is composed of it"
                    raise ValueError(f"graph: step {step.model[:80]!r} {rule}")
                if step.calls <= 0:
                    rule = f"must be called, got calls {step.calls:g}"
                    raise ValueError(f"graph: step {step.model[:80]!r} {rule}")
            try:
                each.in_order()
            except ValueError as error:
                raise ValueError(f"graph: {each.name[:80]!r}: {error}") from error
            if each.name not in models:
                raise ValueError(f"graph: {each.name[:80]!r} is none of the models")
            before.add(each.name)


NO_GRAPH = ModelGraph()
"""The graph of models of which none is composed of others."""
