"""Which instance types serve a demand for least, by the studies of one host or of several."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from optimizer.analysis.comparability import refuse_incomparable, workload_identity
from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.commands.hosts import require_host
from optimizer.commands.load_test_job import JobRun, job_content, read_tests, within_limits
from optimizer.commands.observations import by_search, by_tests
from optimizer.commands.parts import open_space, slot_of
from optimizer.commands.run import RunRequest, run_study
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
from optimizer.machine.fingerprint import Machine, this_machine
from optimizer.measurement.cost import Demand, Price
from optimizer.space_file.reader import Space
from optimizer.study.events import Watcher


@dataclass(frozen=True)
class RecommendRequest:
    """What one `recommend` was asked; None leaves what the studies were run with.

    Attributes:
        studies: names in `results`, or paths of studies' folders.
        results: folder of the studies.
        search: a search on this machine, whose study is ranked with the others; None for none.
        job: file of an advanced job that the searched study's best configurations are put to.
        advanced: rank by what advanced jobs measured, and not by what searches did.
        demand_per_second: over all streams.
        instance_types: that nobody measured, with GPUs that somebody did.
        json: file that the recommendation is written to as well.
    """

    studies: tuple[str, ...]
    results: Path
    search: RunRequest | None = None
    job: Path | None = None
    advanced: bool = False
    demand_per_second: float | None = None
    headroom: float | None = None
    prices: PriceChoice = field(default_factory=PriceChoice)
    instance_types: tuple[str, ...] = ()
    accepted: frozenset[Accepted] = frozenset()
    json: Path | None = None

    @property
    def by_users(self) -> bool:
        """Whether tests of advanced jobs are ranked, every configuration of them."""
        return self.advanced or self.job is not None


@dataclass(frozen=True)
class _Host:
    """What must fit together before anything is ranked, or searched."""

    study: str
    workload_identity: Mapping[str, Any]
    demand: Demand
    price: Price
    machine: Machine


@dataclass(frozen=True)
class _Terms:
    """By what studies are ranked.

    Attributes:
        charged: by study.
        others: instance types that nobody measured.
        accepted: what would have been refused.
    """

    demand: Demand
    listed: Sequence[ListedPrice]
    charged: Mapping[str, Price]
    others: Sequence[ListedPrice]
    accepted: tuple[str, ...]


def recommend_instances(request: RecommendRequest, watch: Watcher) -> Recommendation:
    """Rank the instance types of studies, after a search on this machine where one is asked for.

    What does not fit together is refused before anything starts.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    search = _Search.of(request)
    if not request.studies and search is None:
        raise UsageError("give studies, or --search SPACE.yaml to search this machine first")
    given = _given(request, search)
    hosts = [_of_study(name, study) for name, study in given.items()]
    jobs = [(name, read_tests(study).job) for name, study in given.items() if request.by_users]
    if search is not None:
        hosts.append(_of_this_machine(search.space))
        jobs += [(search.space.study, job_content(job)) for job in [search.job] if job is not None]
    terms = _terms(request, hosts, jobs)
    if search is not None:
        given[search.space.study] = search.study(request, terms, watch)
    found = _found(request, given, terms)
    if request.json is not None:
        write_json(request.json.absolute(), found.to_json())
    return found


def _given(request: RecommendRequest, search: _Search | None) -> dict[str, StudyReading]:
    """The studies by name, less the one that is searched; by path where hosts named theirs alike.

    Raises:
        OptimizerError: where one cannot be read.
    """
    studies = [read_study(request.results, text) for text in request.studies]
    by_root = {study.directory.root: study for study in studies}
    names = Counter(study.name for study in by_root.values())
    if search is not None:
        by_root.pop(request.results.absolute() / search.space.study, None)
        names[search.space.study] += 1
    return {
        study.name if names[study.name] == 1 else str(root): study
        for root, study in by_root.items()
    }


def _of_study(name: str, study: StudyReading) -> _Host:
    searched = study.searched
    wanted = workload_identity(study.content, searched.workload)
    return _Host(name, wanted, searched.demand, searched.price, study.machine)


def _of_this_machine(space: Space) -> _Host:
    server = require_host(space, slot_of(space))
    machine = this_machine(server, space.search_space.hardware.gpus)
    wanted = workload_identity(space.content, space.workload)
    return _Host(space.study, wanted, space.demand, space.price, machine)


def _terms(
    request: RecommendRequest,
    hosts: Sequence[_Host],
    jobs: Sequence[tuple[str, Mapping[str, Any]]],
) -> _Terms:
    """Raises UsageError where hosts asked different things, or prices do not fit."""
    refuse_incomparable([(host.study, host.workload_identity) for host in hosts])
    refuse_incomparable([(name, {"job": job}) for name, job in jobs])
    demand = _demand(request, hosts)
    listed = price_list()
    priced = [(host.price, host.machine) for host in hosts]
    charged = prices_for(priced, request.prices, listed, request.accepted)
    types = {price.instance_type for price in charged}
    others = [
        listed_price(listed, name, request.prices)
        for name in dict.fromkeys(request.instance_types)
        if name not in types
    ]
    for entry in others:
        studies_with_gpu(entry, [(host.study, host.machine) for host in hosts])
    compared = [*charged, *(entry.price for entry in others)]
    refuse_mixed_prices(compared, request.accepted)
    pairs = list(zip(hosts, charged, strict=True))
    accepted = [hardware_mismatch(price, host.machine, listed) for host, price in pairs]
    # Hosts may be alike.
    accepted = [*dict.fromkeys(accepted), price_mismatch(compared)]
    return _Terms(
        demand=demand,
        listed=listed,
        charged={host.study: price for host, price in pairs},
        others=others,
        accepted=tuple(text for text in accepted if text is not None),
    )


def _demand(request: RecommendRequest, hosts: Sequence[_Host]) -> Demand:
    """What is asked for, else what all studies were run for. Raises UsageError."""
    demand = hosts[0].demand
    return replace(
        demand,
        requests_per_second=request.demand_per_second
        or _agreed(hosts, "--demand", lambda d: d.requests_per_second),
        headroom=request.headroom
        if request.headroom is not None
        else _agreed(hosts, "--headroom", lambda d: d.headroom),
    )


def _agreed(hosts: Sequence[_Host], option: str, of: Callable[[Demand], float]) -> float:
    values = {host.study: of(host.demand) for host in hosts}
    if len(set(values.values())) > 1:
        told = ", ".join(f"{study} {value:g}" for study, value in values.items())
        raise UsageError(f"the studies were not run for the same demand ({told}): give {option}")
    return of(hosts[0].demand)


@dataclass(frozen=True)
class _Search:
    """A search on this machine, and the job that its best configurations are put to."""

    run: RunRequest
    space: Space
    job: LoadTestJob | None

    @classmethod
    def of(cls, request: RecommendRequest) -> Self | None:
        """What is asked for, if any. Raises UsageError for a job without a search, or a bad one."""
        if request.search is None:
            if request.job is not None:
                raise UsageError("--job is run on this machine: give its --search SPACE.yaml")
            return None
        space = open_space(request.search.space)
        job = within_limits(read_job(request.job), space) if request.job is not None else None
        return cls(request.search, space, job)

    def study(self, request: RecommendRequest, terms: _Terms, watch: Watcher) -> StudyReading:
        """The study of this machine, searched and, where there is a job, tested."""
        started, name, job = time.monotonic(), self.space.study, self.job
        run_study(self._in_time(), watch)
        study = read_study(request.results, name)
        if job is not None:
            ends_at = started + job.seconds if job.seconds is not None else None
            best = study.decision(terms.charged[name], terms.demand).contenders[: job.tests]
            tests = JobRun(job, self.space, self.run.cache, self.run.seed, ends_at)
            tests.run(study, [finding.candidate.config for finding in best], watch)
        return study

    def _in_time(self) -> RunRequest:
        """The search within what the job's tests leave of its time."""
        if self.job is None or self.job.seconds is None:
            return self.run
        left = self.job.seconds - self.job.tests * self.job.load.seconds
        return replace(self.run, timeout_seconds=min(left, self.run.timeout_seconds or left))


def _found(
    request: RecommendRequest, studies: Mapping[str, StudyReading], terms: _Terms
) -> Recommendation:
    demand, charged = terms.demand, terms.charged
    if request.by_users:
        studied = [
            by_tests(name, study, read_tests(study), charged[name], demand)
            for name, study in studies.items()
        ]
    else:
        studied = [by_search(name, study, charged[name], demand) for name, study in studies.items()]
    found = recommend(
        studied, terms.others, terms.listed, demand, every_configuration=request.by_users
    )
    return replace(found, accepted=terms.accepted)
