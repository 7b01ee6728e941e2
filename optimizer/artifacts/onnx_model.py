"""Models given as an ONNX file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.artifacts.accuracy import batch_mismatch
from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.cache import FileState, file_digest, file_state
from optimizer.artifacts.graphs.axis_names import name_axes
from optimizer.artifacts.graphs.batch_axis import free_batch_axis, size_of_batch
from optimizer.artifacts.graphs.exporter_forms import (
    drop_outputs_without_tensor,
    normalise,
    scalars_to_vectors,
)
from optimizer.artifacts.graphs.onnx_graph import (
    external_tensors,
    opset_of,
)
from optimizer.artifacts.onnx_interface import (
    check_inputs,
    graph_inputs,
    output_tensor,
    served_outputs,
)
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure, NoBatchAxis, UsageError, cause_text
from optimizer.files.request_payloads import requests_of_one_shape
from optimizer.workload.model_spec import ModelSpec, OnnxSource
from optimizer.workload.streams import Tensors, stack

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"

_NEWEST_IR_VERSION = re.compile(r"max supported IR version: (\d+)")
_NEWEST_OPSET = re.compile(r"support for domain ai\.onnx is till opset (\d+)")

_CHECKED_BATCH = 3
"""Requests in the batch that a graph must answer once its batch axis was freed."""


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file and the external data beside it."""

    model: ModelSpec
    source: OnnxSource

    def fingerprint(self) -> dict[str, object]:
        """Return the digests of the file and of its external data."""
        with _readable(self.source.path):
            files = (self.source.path.name, *self._external_names())
            return {"onnx": [file_digest(self._beside(n)) for n in files], "traces": False}

    def export_onnx(self, into: Path) -> None:
        """Copy the files, so that a later change of the source cannot change the cache.

        What not every runtime loads is rewritten, free axes are named after their dimensions, and
        notes of the exporter on the machine that it ran on are removed.
        """
        names = self._external_names()
        header, _ = self._served_header()
        _forget_traces(header)
        name_axes(header.graph, self.model.payloads.as_served())
        _flatten_external_data(header)
        (into / "model.onnx").write_bytes(header.SerializeToString())
        for name in names:
            shutil.copyfile(self._beside(name), into / _flat(name))

    def export_torch(self, into: Path, precision: Precision) -> None:
        """Raise BuildFailure: an ONNX file has no torch program."""
        raise BuildFailure(
            f"{self.model.name}: runtime pytorch needs a transformers source,"
            f" it cannot be made from {self.source.path}"
        )

    def open(self) -> OpenedModel:
        """Open the file with ONNX Runtime."""
        files = [self.source.path, *map(self._beside, self._external_names())]
        header, rewritten = self._served_header()
        session = self._session(header if rewritten else None)
        batched = self.model.payloads.as_served().batched
        values = served_outputs(header.graph, self.model.outputs, batched=batched)
        names = [value.name for value in values]

        def run(request: Tensors) -> Tensors:
            return dict(zip(names, session.run(names, request), strict=True))

        ranks: dict[str, int] = {}
        if not all(value.type.tensor_type.HasField("shape") for value in values):
            ranks = {name: array.ndim for name, array in run(self._requests(1)[0]).items()}
        outputs = [output_tensor(v, ranks.get(v.name), batched=batched) for v in values]
        return OpenedModel(run, tuple(outputs), sum(file.stat().st_size for file in files))

    def _served_header(self) -> tuple[onnx.ModelProto, bool]:
        """Return the graph as it is served, without its external data, and whether it is rewritten.

        Raises:
            UsageError: where it does not fit the payloads or the outputs.
            NoBatchAxis: where it must be served without batches.
        """
        with _readable(self.source.path):
            header = _header(self.source.path)
            rewritten = normalise(header)
        batched = self.model.payloads.as_served().batched
        if not batched:
            rewritten |= scalars_to_vectors(header.graph)
        inputs = graph_inputs(header.graph)
        check_inputs(inputs, self.model.payloads.as_served())
        values = served_outputs(header.graph, self.model.outputs, batched=batched)
        names = [value.name for value in values]
        rewritten |= drop_outputs_without_tensor(header.graph)
        if batched and any(size_of_batch(value) == 1 for value in inputs.values()):
            alone = self._session(header if rewritten else None)
            free_batch_axis(header, inputs.values(), names)
            self._check_batch(alone, self._session(header), names)
            rewritten = True
        return header, rewritten

    def _session(self, header: onnx.ModelProto | None) -> onnxruntime.InferenceSession:
        """Open the graph, or the file as it is."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model = self.source.path if header is None else header.SerializeToString()
        folder = str(self.source.path.parent.resolve())
        options.add_session_config_entry(_EXTERNAL_DATA, folder)
        providers = ["CPUExecutionProvider"]
        with _readable(self.source.path):
            try:
                return onnxruntime.InferenceSession(model, options, providers=providers)
            except Exception as error:  # of pybind11's
                self._refuse_newer(str(error))
                raise

    def _refuse_newer(self, reason: str) -> None:
        """Raise UsageError where ONNX Runtime says that the file's form is newer than its own."""
        header = _header(self.source.path)
        newest = _NEWEST_IR_VERSION.search(reason), _NEWEST_OPSET.search(reason)
        names = ("IR version", header.ir_version), ("opset", opset_of(header))
        for (name, own), most in zip(names, newest, strict=True):
            if most is not None:
                raise UsageError(
                    f"{self.source.path}: its {name} must be at most {most[1]}, the newest that "
                    f"the installed ONNX Runtime reads, got {own}: export it with an older one, "
                    "or install a newer onnxruntime"
                )

    def _check_batch(
        self,
        alone: onnxruntime.InferenceSession,
        batched: onnxruntime.InferenceSession,
        outputs: Sequence[str],
    ) -> None:
        """Raise NoBatchAxis where a batch is answered unlike its requests by themselves.

        Args:
            alone: takes batches of 1 only.
            batched: the same graph with a dynamic batch.
        """
        rows = self._requests(_CHECKED_BATCH)
        rule = "the first axis of the inputs, fixed to 1, cannot become a batch"
        singles = [alone.run(outputs, row) for row in rows]
        try:
            answers = batched.run(outputs, stack(rows))
        except Exception as error:  # whatever ONNX Runtime raises
            raise NoBatchAxis(
                f"outputs {', '.join(outputs)}: {rule}: {cause_text(error)}"
            ) from error
        for n, name in enumerate(outputs):
            single = np.concatenate([row[n] for row in singles])
            if answers[n].shape != single.shape:
                wrong = f"a batch of {len(rows)} gives the shape {list(answers[n].shape)}"
            else:
                wrong = batch_mismatch(single, single, answers[n]) or ""
            if wrong:
                raise NoBatchAxis(f"output {name!r}: {rule}: {wrong}")

    def _requests(self, count: int) -> list[Tensors]:
        """Return requests of one inference and of equal, largest shapes."""
        rows = requests_of_one_shape(self.model.payloads, count, np.random.default_rng(0))
        return [rows[n % len(rows)] for n in range(count)]

    def _external_names(self) -> tuple[str, ...]:
        with _readable(self.source.path):
            return _external_files(self.source.path, file_state(self.source.path))

    def _beside(self, name: str) -> Path:
        """Return the path of an external file, which must lie in the model's directory."""
        directory = self.source.path.parent.resolve()
        path = (directory / name).resolve()
        if not path.is_relative_to(directory):
            raise UsageError(
                f"{self.source.path}: external data must lie beside the file, got {name!r}"
            )
        if not path.is_file():
            raise UsageError(f"{self.source.path}: external data {name!r} is missing")
        return path


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    # protobuf's DecodeError moves between versions of the package.
    except Exception as error:
        raise UsageError(f"{path}: must be a readable ONNX file: {cause_text(error)}") from error


def _header(path: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(path, load_external_data=False)


def _flat(location: str) -> str:
    """Return the name of external data in the folder of the graph, without folders of its own."""
    return location.replace("/", ".")


def _flatten_external_data(model: onnx.ModelProto) -> None:
    for tensor in external_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = _flat(entry.value)


def _forget_traces(model: onnx.ModelProto) -> None:
    """Clear the source files and lines that PyTorch notes for each node."""
    _forget_graph(model.graph)
    for function in model.functions:
        _clear(function, *function.value_info)
        _forget_nodes(function.node)


def _forget_graph(graph: onnx.GraphProto) -> None:
    _clear(graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    _forget_nodes(graph.node)


def _forget_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    _clear(*nodes)
    for node in nodes:
        for attribute in node.attribute:
            own = [attribute.g] if attribute.HasField("g") else []
            for graph in (*own, *attribute.graphs):
                _forget_graph(graph)


def _clear(*messages: Any) -> None:
    for message in messages:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")


@lru_cache
def _external_files(path: Path, _state: FileState) -> tuple[str, ...]:
    locations = {
        entry.value
        for tensor in external_tensors(_header(path))
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(locations))
