from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from optimizer.search.surrogate.pending_residuals import PendingResiduals
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.residuals import (
    _DISTANCE_WEIGHT,
    Array,
    Observations,
    ResidualModel,
    Rows,
    Scales,
    Terms,
    _Likelihood,
)
from tests.unit.studies import small_space

SPACE = small_space()
LIKE = PointFeatures.of(SPACE)
ALL = np.arange(len(SPACE))


def terms(expected: Array | None = None, log_sd: float = 0.1) -> Terms:
    own = expected if expected is not None else np.random.default_rng(1).standard_normal(len(SPACE))
    return Terms(LIKE, own - own.mean(), np.full(len(SPACE), log_sd))


def fitted(rows: Rows, differences: Array, of: Terms | None = None) -> ResidualModel:
    return ResidualModel.fitted(
        of or terms(), Observations(rows, differences, np.zeros(len(rows))), Scales()
    )


NOTHING = fitted(np.array([], dtype=np.int64), np.array([]))


def some_rows(count: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).permutation(len(SPACE))[:count]


def test_points_of_a_cell_differ_in_queueing_alone() -> None:
    for cell in np.unique(LIKE.cells):
        models = [SPACE.config(SPACE.at(int(r))).models[0] for r in ALL[LIKE.cells == cell]]
        assert len({(m.artifact, m.max_batch_size, m.groups) for m in models}) == 1
    configs = [SPACE.config(SPACE.at(int(row))).models[0] for row in ALL]
    cells = {(m.artifact, m.max_batch_size, m.groups) for m in configs}
    assert len(np.unique(LIKE.cells)) == len(cells)
    assert len(np.unique(LIKE.artifacts)) == len({m.artifact for m in configs})
    assert len(np.unique(LIKE.layouts)) == len({m.groups for m in configs})


def test_where_nothing_is_merged_the_batch_is_one_request() -> None:
    alone = [SPACE.config(SPACE.at(int(row))).models[0].batching is None for row in ALL]
    assert (LIKE.log2_batch[alone] == 0).all()
    assert (LIKE.log2_batch[~np.array(alone)] >= 2).all()


def test_nothing_is_expected_of_differences_before_any_was_seen() -> None:
    mean, sd = NOTHING.predict(ALL)
    assert (mean == 0).all()
    assert (sd > 0.1).all()


def test_what_was_seen_is_believed_but_for_the_noise() -> None:
    rows = some_rows(12)
    differences = 0.2 * np.random.default_rng(3).standard_normal(12)
    model = fitted(rows, differences)
    mean, sd = model.predict(rows)
    assert np.abs(mean - differences).max() < 0.1
    assert (sd < 2 * model.noise).all()
    _, elsewhere = model.predict(np.setdiff1d(ALL, rows))
    assert elsewhere.min() > sd.max()


def test_a_difference_tells_most_of_its_own_cell_and_of_its_artifact_more_than_of_others() -> None:
    seen = int(ALL[LIKE.log2_batch[:, 0] == 2][0])
    mean, _ = fitted(np.array([seen]), np.array([0.5])).predict(ALL)
    own = (LIKE.cells == LIKE.cells[seen]) & (seen != ALL)
    others = LIKE.artifacts != LIKE.artifacts[seen]
    alike = ~own & ~others & (seen != ALL)
    assert mean[own].min() > mean[alike].max()
    assert mean[alike].mean() > mean[others].mean() > 0


def test_a_forecast_that_is_worthless_is_unlearnt() -> None:
    """The truth knows nothing of the forecast: what is left of it must be the data."""
    rng = np.random.default_rng(5)
    forecast = rng.standard_normal(len(SPACE))
    truth = 0.8 * (LIKE.artifacts % 2) - 0.2 * LIKE.log2_batch[:, 0]
    rows = some_rows(30)
    model = fitted(rows, (truth - forecast)[rows], terms(forecast))
    rest = np.setdiff1d(ALL, rows)
    mean, sd = model.predict(rest)
    found = forecast[rest] + mean
    assert np.corrcoef(found, truth[rest])[0, 1] > 0.8
    assert np.corrcoef(found, forecast[rest])[0, 1] < 0.5
    assert (np.abs(found - truth[rest]) < 3 * sd).mean() > 0.9


def test_large_differences_widen_what_is_thought_possible_elsewhere() -> None:
    rows = some_rows(8)
    differences = np.random.default_rng(2).standard_normal(8)
    rest = np.setdiff1d(ALL, rows)
    _, small = fitted(rows, 0.02 * differences).predict(rest)
    _, large = fitted(rows, 0.8 * differences).predict(rest)
    assert large.mean() > 4 * small.mean()


def test_a_point_that_is_believed_is_known_and_expected_as_before() -> None:
    rows = some_rows(10)
    model = fitted(rows, 0.1 * np.ones(10))
    new = np.setdiff1d(ALL, rows)[:2]
    mean, sd = model.predict(ALL)
    pending = PendingResiduals(model, ALL)
    assert pending.mixture().moments[1] == pytest.approx(sd)
    pending.add(new)
    again, less = pending.mixture().moments
    assert again == pytest.approx(mean, abs=1e-6)
    assert (less[new] < sd[new] / 2).all()
    assert (less <= sd + 1e-9).all()


def test_points_that_run_take_as_much_uncertainty_away_as_if_they_had_been_measured() -> None:
    rows, new = some_rows(20)[:10], some_rows(20)[10:]
    model = fitted(rows, 0.1 * np.random.default_rng(6).standard_normal(10))
    pending = PendingResiduals(model, ALL)
    for n in range(0, 10, 5):
        pending.add(new[n : n + 5])
    observed = Observations(np.concatenate([rows, new]), np.zeros(20), np.zeros(20))
    for sd, fit in zip(pending.mixture().sds, model.given(observed).predictions(ALL), strict=True):
        assert sd == pytest.approx(np.sqrt(fit.variance), rel=1e-6)


def test_draws_have_the_mean_and_deviation_that_are_predicted() -> None:
    rows = some_rows(10)
    model = fitted(rows, 0.2 * np.random.default_rng(4).standard_normal(10))
    drawn = model.draws(ALL, 4000, np.random.default_rng(0))
    mean, sd = model.predict(ALL)
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=0.02)
    assert drawn.std(axis=0) == pytest.approx(sd, rel=0.1)


def test_what_was_disturbed_counts_less() -> None:
    rows, differences = some_rows(10), np.zeros(10)
    differences[3] = -0.4
    model = fitted(rows, differences)
    disturbances = np.where(differences == 0, 0.0, 0.3)
    disturbed = model.given(Observations(rows, differences, disturbances))
    (believed, sure), (doubted, unsure) = model.predict(rows[3:4]), disturbed.predict(rows[3:4])
    assert believed[0] < -0.2 < doubted[0] < 0
    assert unsure[0] > 2 * sure[0]


def test_a_trial_that_fell_behind_its_cell_may_have_been_unlucky() -> None:
    """With the most likely noise alone, it is certain not to be as good as the others."""
    own = ALL[LIKE.cells == np.bincount(LIKE.cells).argmax()]
    rows = np.union1d(own, some_rows(10))
    model = fitted(rows, np.where(rows == own[0], 0.15, 0.0))

    def unlucky(of: ResidualModel) -> float:
        one, other = of.draws(own[:2], 4000, np.random.default_rng(0)).T
        return float((one < other).mean())

    assert unlucky(model) < 0.01
    assert unlucky(model.with_uncertain_noise()) > 0.04


def test_before_any_trial_all_noises_are_as_probable() -> None:
    uncertain = NOTHING.with_uncertain_noise()
    shares = dict[float, float]()
    for fit, weight in zip(uncertain.fits, uncertain.weights, strict=True):
        noise = round(fit.noise, 6)
        shares[noise] = shares.get(noise, 0.0) + weight
    assert list(shares.values()) == pytest.approx([1 / 3] * 3)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 20))
def test_the_gradient_is_that_of_the_likelihood(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    disturbances = rng.uniform(0, 0.5, count)
    seen = Observations(some_rows(count, seed), rng.standard_normal(count), disturbances)
    priors = [*Scales().listed, *([_DISTANCE_WEIGHT] * LIKE.coordinates.shape[1])]
    likelihood = _Likelihood(terms(), seen, priors)
    at = np.log([prior.median for prior in priors]) + 0.3 * rng.standard_normal(len(priors))
    _, gradient = likelihood(at)
    numeric = optimize.approx_fprime(at, lambda x: likelihood(x)[0], 1e-6)
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-3)
