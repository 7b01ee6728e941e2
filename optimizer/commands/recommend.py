"""Rank instance types by the cost of serving a demand, by studies of one host or of several."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from optimizer.analysis.comparability import refuse_incomparable, workload_identity
from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.commands.load_test_job import JobRun, job_content, read_tests, within_limits
from optimizer.commands.observations import by_search, by_tests
from optimizer.commands.run import run_study
from optimizer.commands.run_context import open_space, require_machine
from optimizer.commands.run_options import RunOptions
from optimizer.errors import UsageError
from optimizer.files.atomic import write_json
from optimizer.fleet.price_list import ListedPrice, price_list
from optimizer.fleet.price_rules import (
    Accepted,
    PriceChoice,
    hardware_mismatch,
    listed_price,
    price_mismatch,
    prices_for,
    refuse_mixed_prices,
)
from optimizer.fleet.recommendation import Recommendation, recommend, studies_with_gpu
from optimizer.load.user_load_file import LoadTestJob, read_job
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Demand, Price
from optimizer.space_file.reader import Space
from optimizer.study.events import Watcher

_TRIALS = 10
"""Of a search on this machine by default: a quick look, not a night's search."""


@dataclass(frozen=True)
class RecommendOptions:
    """Options of `recommend`; None leaves what the studies were run with.

    Attributes:
        space: a space file that is searched on this machine first; None for no search.
        trials, timeout_seconds, seed: of that search.
        job: file of a load-test job for the best configurations of that search.
        advanced: rank by the tests of load-test jobs, and not by the searches.
        demand_per_second: of all streams together.
        instance_types: that were not measured, with GPUs that were.
        json: file that the recommendation is also written to.

    Raises:
        UsageError: for options that do not go together.
    """

    studies: tuple[str, ...] = ()
    space: Path | None = None
    trials: int | None = None
    timeout_seconds: float | None = None
    seed: int = 0
    job: Path | None = None
    advanced: bool = False
    demand_per_second: float | None = None
    headroom: float | None = None
    rate: str | None = None
    region: str | None = None
    accepted: Collection[Accepted] = ()
    instance_types: tuple[str, ...] = ()
    json: Path | None = None
    results: Path = Path("results")
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        """Check that the options go together."""
        if self.space is None:
            if self.trials is not None or self.timeout_seconds is not None:
                raise UsageError("--trials and --timeout are options of a --search")
            if self.job is not None:
                raise UsageError("--job runs on this machine: give its --search SPACE.yaml")
            if not self.studies:
                raise UsageError("give studies, or --search SPACE.yaml to search this machine")

    @property
    def search(self) -> RunOptions | None:
        """The search on this machine."""
        if self.space is None:
            return None
        return RunOptions(
            self.space,
            trials=self.trials or _TRIALS,
            timeout_seconds=self.timeout_seconds,
            seed=self.seed,
            results=self.results,
            cache=self.cache,
        )

    @property
    def by_users(self) -> bool:
        """Whether all tests of load-test jobs are ranked."""
        return self.advanced or self.job is not None

    @property
    def prices(self) -> PriceChoice:
        """The prices of the price list that are used."""
        return PriceChoice(self.rate, self.region)


@dataclass(frozen=True)
class _Host:
    """A host whose study is ranked, or searched first."""

    study: str
    workload_identity: Mapping[str, Any]
    demand: Demand
    price: Price
    machine: Machine


@dataclass(frozen=True)
class _Terms:
    """Demand and prices by which studies are ranked.

    Attributes:
        prices: by study.
        others: instance types that were not measured.
        accepted: what would have been refused.
    """

    demand: Demand
    listed: Sequence[ListedPrice]
    prices: Mapping[str, Price]
    others: Sequence[ListedPrice]
    accepted: tuple[str, ...]


@one_blas_thread()
def recommend_instances(options: RecommendOptions, watch: Watcher) -> Recommendation:
    """Rank the instance types of studies, after a search on this machine if one is wanted.

    Studies, prices and demands that cannot be compared are refused before anything starts.
    """
    search = _Search.of(options)
    studies = _studies(options, search)
    hosts = [_host_of_study(name, study) for name, study in studies.items()]
    jobs = (
        [(name, read_tests(study).job) for name, study in studies.items()]
        if options.by_users
        else []
    )
    if search is not None:
        hosts.append(_this_host(search.space))
        if search.job is not None:
            jobs.append((search.space.study, job_content(search.job)))
    terms = _terms(options, hosts, jobs)
    if search is not None:
        studies[search.space.study] = search.run(options, terms, watch)
    recommendation = _ranked(studies, terms, by_users=options.by_users)
    if options.json is not None:
        write_json(options.json.absolute(), recommendation.to_json())
    return recommendation


def _studies(options: RecommendOptions, search: _Search | None) -> dict[str, StudyReading]:
    """Read the studies but the one that is searched, by name; by path where names are the same."""
    studies = [read_study(options.results, text) for text in options.studies]
    by_root = {study.directory.root: study for study in studies}
    names = Counter(study.name for study in by_root.values())
    if search is not None:
        by_root.pop(options.results.absolute() / search.space.study, None)
        names[search.space.study] += 1
    return {
        study.name if names[study.name] == 1 else str(root): study
        for root, study in by_root.items()
    }


def _host_of_study(name: str, study: StudyReading) -> _Host:
    searched = study.searched
    identity = workload_identity(study.content, searched.workload)
    return _Host(name, identity, searched.demand, searched.price, study.machine)


def _this_host(space: Space) -> _Host:
    _, machine = require_machine(space)
    identity = workload_identity(space.content, space.workload)
    return _Host(space.study, identity, space.demand, space.price, machine)


def _terms(
    options: RecommendOptions,
    hosts: Sequence[_Host],
    jobs: Sequence[tuple[str, Mapping[str, Any]]],
) -> _Terms:
    """Return the terms. Raises UsageError where workloads or prices cannot be compared."""
    refuse_incomparable([(host.study, host.workload_identity) for host in hosts])
    refuse_incomparable([(name, {"job": job}) for name, job in jobs])
    demand = _demand(options, hosts)
    listed = price_list()
    priced = [(host.price, host.machine) for host in hosts]
    prices = prices_for(priced, options.prices, listed, options.accepted)
    types = {price.instance_type for price in prices}
    others = [
        listed_price(listed, name, options.prices)
        for name in dict.fromkeys(options.instance_types)
        if name not in types
    ]
    for entry in others:
        studies_with_gpu(entry, [(host.study, host.machine) for host in hosts])
    compared = [*prices, *(entry.price for entry in others)]
    refuse_mixed_prices(compared, options.accepted)
    pairs = list(zip(hosts, prices, strict=True))
    mismatches = [hardware_mismatch(price, host.machine, listed) for host, price in pairs]
    # Hosts may have the same mismatch.
    accepted = [*dict.fromkeys(mismatches), price_mismatch(compared)]
    return _Terms(
        demand=demand,
        listed=listed,
        prices={host.study: price for host, price in pairs},
        others=others,
        accepted=tuple(text for text in accepted if text is not None),
    )


def _demand(options: RecommendOptions, hosts: Sequence[_Host]) -> Demand:
    """Return the demand of the options, else that of all studies. Raises UsageError."""
    rate, headroom = options.demand_per_second, options.headroom
    if rate is None:
        rate = _common(hosts, "--demand", lambda demand: demand.requests_per_second)
    if headroom is None:
        headroom = _common(hosts, "--headroom", lambda demand: demand.headroom)
    return replace(hosts[0].demand, requests_per_second=rate, headroom=headroom)


def _common(hosts: Sequence[_Host], option: str, value: Callable[[Demand], float]) -> float:
    values = {host.study: value(host.demand) for host in hosts}
    if len(set(values.values())) > 1:
        each = ", ".join(f"{study} {number:g}" for study, number in values.items())
        raise UsageError(f"the studies were not run for the same demand ({each}): give {option}")
    return value(hosts[0].demand)


@dataclass(frozen=True)
class _Search:
    """A search on this machine, and the load-test job of its best configurations."""

    options: RunOptions
    space: Space
    job: LoadTestJob | None

    @classmethod
    def of(cls, options: RecommendOptions) -> Self | None:
        """Read the space and the job of the search. Raises UsageError for a job with mistakes."""
        if options.search is None:
            return None
        space = open_space(options.search.space)
        job = within_limits(read_job(options.job), space) if options.job is not None else None
        return cls(options.search, space, job)

    def run(self, options: RecommendOptions, terms: _Terms, watch: Watcher) -> StudyReading:
        """Search this machine and run the job; return the study."""
        started, name, job = time.monotonic(), self.space.study, self.job
        run_study(self._options_in_time(), watch)
        study = read_study(options.results, name)
        if job is not None:
            ends_at = started + job.seconds if job.seconds is not None else None
            best = study.decision(terms.prices[name], terms.demand).contenders[: job.tests]
            tests = JobRun(job, self.space, options.cache, options.seed, ends_at)
            tests.run(study, [finding.candidate.config for finding in best], watch)
        return study

    def _options_in_time(self) -> RunOptions:
        """Return the options of a search that leaves the job's tests their time."""
        options, job = self.options, self.job
        if job is None or job.seconds is None:
            return options
        seconds = job.seconds - job.tests * job.load.seconds
        return replace(options, timeout_seconds=min(seconds, options.timeout_seconds or seconds))


def _ranked(
    studies: Mapping[str, StudyReading], terms: _Terms, *, by_users: bool
) -> Recommendation:
    demand, prices = terms.demand, terms.prices
    if by_users:
        studied = [
            by_tests(name, study, read_tests(study), prices[name], demand)
            for name, study in studies.items()
        ]
    else:
        studied = [by_search(name, study, prices[name], demand) for name, study in studies.items()]
    recommendation = recommend(
        studied, terms.others, terms.listed, demand, every_configuration=by_users
    )
    return replace(recommendation, accepted=terms.accepted)
