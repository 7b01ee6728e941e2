"""Which models of a configuration are composed of which others. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Ensemble:
    """A model that passes each request through other models.

    Attributes:
        steps: names of these, each once, in the order of its config.pbtxt.
    """

    name: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class ModelGraph:
    """The ensembles among the models of a configuration.

    Attributes:
        ensembles: one that is a step of another comes before that.
    """

    ensembles: tuple[Ensemble, ...]

    @property
    def names(self) -> frozenset[str]:
        """Names of the ensembles."""
        return frozenset(ensemble.name for ensemble in self.ensembles)

    @property
    def steps(self) -> frozenset[str]:
        """Names of the models that get their requests from an ensemble."""
        return frozenset(step for ensemble in self.ensembles for step in ensemble.steps)

    def below(self, name: str) -> frozenset[str]:
        """Return the names of all models that a model is composed of, directly or not."""
        own = {step for each in self.ensembles if each.name == name for step in each.steps}
        return frozenset(own).union(*map(self.below, own))

    def check(self, models: Collection[str]) -> None:
        """Check that ensembles and steps are among the models, and each ensemble after its steps.

        Raises:
            ValueError: with the first rule that is broken.
        """
        before = {*models} - self.names
        for ensemble in self.ensembles:
            for step in ensemble.steps:
                if step not in before:
                    raise ValueError(f"graph: step {step[:80]!r} is no model before its ensemble")
            if ensemble.name not in models:
                raise ValueError(f"graph: ensemble {ensemble.name[:80]!r} is none of the models")
            before.add(ensemble.name)


NO_GRAPH = ModelGraph(())
"""The graph of models of which none is composed of others."""
