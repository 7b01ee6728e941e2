"""Serve a study's best configuration, or an exported bundle, on this machine."""

from __future__ import annotations

import json
import math
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.commands.bundle_serving import (
    BundleHost,
    ServerSettings,
    bundle_host,
    measured_on,
    served_bundle,
)
from optimizer.commands.code_consent import CodeConsent
from optimizer.commands.run_context import artifact_cache
from optimizer.configuration.hosting import ContainerHost, RemoteHost
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import UsageError
from optimizer.export.bundle.manifest import MANIFEST, read_bundle
from optimizer.export.bundle.repository import holds_configuration
from optimizer.export.deployment import Input, longest_inputs
from optimizer.study.events import Watcher
from optimizer.triton.control import Endpoint
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.launcher import RunningServer, free_ports
from optimizer.triton.start_commands import container_start_command, embedded_start_commands
from optimizer.workload.streams import Workload

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class ServeOptions:
    """Options of `serve`.

    Attributes:
        subject: a study's name in `results`, a study's own folder, or the folder of a bundle.
        baseline: serve the study's baseline in place of its best.
        allow_code: whether code of the models runs that was not made here.
        http_port, grpc_port, metrics_port: on 127.0.0.1; 0 takes one that is free.
    """

    subject: str
    baseline: bool = False
    allow_code: bool = False
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    results: Path = Path("results")


@dataclass(frozen=True)
class Servable:
    """A model repository that can be served here.

    Attributes:
        root: folder of the repository.
        endpoint: addresses that the server listens on.
    """

    root: Path
    config: ServingConfig
    workload: Workload
    where: BundleHost
    endpoint: Endpoint

    @property
    def description(self) -> str:
        """The configuration in words."""
        return describe(self.config)

    def by_hand(self) -> str:
        """Return the shell commands that start the same server without this program."""
        host, slot, options = self.where.host, self.where.slot, self.config.server
        if isinstance(host, ContainerHost):
            return container_start_command(host, self.root, options, slot, self.endpoint)
        runtime = find_embedded_runtime()
        return embedded_start_commands(runtime, self.root, options, slot, self.endpoint)

    def example_request(self) -> str:
        """Return a shell command that sends one inference request to the first model."""
        stream = self.workload.streams[0]
        inputs = ", ".join(map(_input_text, longest_inputs(stream.payloads)))
        version = f"/versions/{stream.version}" if stream.version else ""
        url = f"http://{self.endpoint.http}/v2/models/{stream.target}{version}/infer"
        return f"curl --silent {shlex.quote(url)} --data '{{\"inputs\": [{inputs}]}}'"


def _input_text(each: Input) -> str:
    """Return an input as JSON in single quotes, whose values the shell writes.

    Every element has the smallest value that is allowed.
    """
    about = {"name": each.name, "shape": each.shape, "datatype": each.data_type}
    values = f"$(yes {each.value:g} | head -n {math.prod(each.shape)} | paste -sd,)"
    text = json.dumps(about)[:-1].replace("'", "\\u0027")
    return f'{text}, "data": [\'"{values}"\']}}'


def find_servable(options: ServeOptions) -> Servable:
    """Find the repository to serve, and check that this machine can serve it.

    Raises:
        UsageError: where there is nothing to serve, or a port is taken.
        RequirementError: the machine, the image or the server lacks something.
        StorageError: when the study's files are damaged.
    """
    folder = Path(options.subject).absolute()
    if (folder / MANIFEST).exists():
        if options.baseline:
            raise UsageError(f"--baseline: needs a study; {folder} is a bundle")
        bundle = read_bundle(folder)
        if bundle.manifest.patched:
            raise UsageError(
                f"{folder} contains a patch and no models: apply it to the model repository, and "
                "start tritonserver on that"
            )
        root, config, workload = folder, bundle.manifest.config, bundle.load.workload
        settings = measured_on(bundle.manifest)
    else:
        study = read_study(options.results, options.subject)
        root, config = _written_repository(study, baseline=options.baseline)
        workload, settings = study.searched.workload, _server_of(study)
    where = bundle_host(settings, config)
    if isinstance(where.host, RemoteHost):
        raise UsageError(
            f"it was measured on the remote server at {where.host.grpc}: copy the models of {root} "
            "into its repository"
        )
    return Servable(root, config, workload, where, _endpoint(options))


def _written_repository(study: StudyReading, *, baseline: bool) -> tuple[Path, ServingConfig]:
    """Return the repository that a study has written, and its configuration."""
    if baseline:
        root, config = study.directory.baseline, study.baseline
    else:
        best = study.own_decision.best
        if best is None:
            raise UsageError(
                f"study {study.name} has nothing to serve: {study.why_nothing_confirmed}"
            )
        root, config = study.directory.best, best.config
    if not holds_configuration(root, config):
        raise UsageError(
            f"{root} does not contain {describe(config)}: it is written when the study ends; rerun "
            "`run` to resume it"
        )
    return root, config


def _server_of(study: StudyReading) -> ServerSettings:
    settings: ServerSettings = study.content.get("server", {})
    return settings


def _endpoint(options: ServeOptions) -> Endpoint:
    """Return the addresses to listen on. Raises UsageError where a port is in use."""
    wanted = {
        "--grpc-port": options.grpc_port,
        "--http-port": options.http_port,
        "--metrics-port": options.metrics_port,
    }
    spare = iter(free_ports(len(wanted)))
    ports = []
    for option, port in wanted.items():
        if port and not _is_free(port):
            raise UsageError(f"{option}: {port} is in use on {_HOST}: give another, or 0 for any")
        ports.append(port or next(spare))
    return Endpoint(*(f"{_HOST}:{port}" for port in ports))


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((_HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def serving(servable: Servable, *, allow_code: bool, watch: Watcher) -> Iterator[RunningServer]:
    """Serve a repository; nothing is left running in the end.

    Raises:
        TrialFailure: where it cannot be served.
        UsageError: where that would run code that was not made here, and is not allowed.
    """

    def ports(_: int) -> Sequence[int]:
        at = servable.endpoint
        return [int(x.rpartition(":")[2]) for x in (at.grpc, at.http, at.metrics)]

    with served_bundle(
        servable.root,
        servable.config,
        servable.workload,
        servable.where,
        CodeConsent(artifact_cache(None), allow_code, watch),
        ports,
    ) as bundle:
        yield bundle.served.server
