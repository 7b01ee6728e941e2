"""Models given as an ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.accuracy import batch_mismatch
from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.cache import FileState, file_digest, file_state
from optimizer.artifacts.graphs.batch_axis import NO_BATCHES, free_batch_axis, size_of_batch
from optimizer.artifacts.graphs.exporter_forms import (
    drop_outputs_without_tensor,
    is_tensor,
    normalise,
)
from optimizer.artifacts.graphs.onnx_graph import OnnxGraph
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure, UsageError, cause_text
from optimizer.workload.model_spec import ModelSpec, OnnxSource
from optimizer.workload.streams import NUMPY_TYPES, DataType, OutputTensor, Tensors, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"

_CHECKED_BATCH = 3
"""Requests in the batch that a graph with a rewritten batch axis must answer."""

_TRITON_TYPES: dict[str, DataType] = {"FLOAT": "FP32", "INT32": "INT32", "INT64": "INT64"}
"""Triton's names of the ONNX element types that an output may have."""


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

        Notes of the exporter on the machine that it ran on are removed.
        """
        header, _ = self._served_header()
        names = self._external_names()
        _forget_traces(header)
        (into / "model.onnx").write_bytes(header.SerializeToString())
        for name in names:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._beside(name), target)

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
        output = _output_spec(header, self.model.output)
        session = self._session(header if rewritten else None)

        def run(request: Tensors) -> NDArray[Any]:
            answer: NDArray[Any] = session.run([self.model.output], request)[0]
            return answer

        return OpenedModel(run, output, sum(file.stat().st_size for file in files))

    def _served_header(self) -> tuple[onnx.ModelProto, bool]:
        """Return the graph as it is served, without its external data, and whether it is rewritten.

        Raises:
            UsageError: where it does not fit the payloads or the output.
        """
        with _readable(self.source.path):
            header = _header(self.source.path)
            rewritten = normalise(header)
        inputs = _inputs(header)
        _check_inputs(inputs, self.model.payloads.tensors)
        _check_output(header, self.model.output)
        rewritten |= drop_outputs_without_tensor(header.graph)
        if any(size_of_batch(value) == 1 for value in inputs.values()):
            alone = self._session(header if rewritten else None)
            free_batch_axis(header, inputs.values(), [self.model.output])
            self._check_batch(alone, self._session(header))
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
        with _readable(self.source.path):
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _check_batch(
        self, alone: onnxruntime.InferenceSession, batched: onnxruntime.InferenceSession
    ) -> None:
        """Raise UsageError where a batch is answered differently from its requests by themselves.

        Args:
            alone: takes batches of 1 only.
            batched: the same graph with a dynamic batch.
        """
        name = self.model.output
        [batch] = self.model.payloads.sample(1, np.random.default_rng(0), batch_size=_CHECKED_BATCH)
        rows = [{key: v[n : n + 1] for key, v in batch.items()} for n in range(_CHECKED_BATCH)]
        rule = f"output {name!r}: the first axis of the inputs, fixed to 1, cannot become a batch"
        single = np.concatenate([alone.run([name], row)[0] for row in rows])
        try:
            answer = batched.run([name], batch)[0]
        except Exception as error:  # whatever ONNX Runtime raises
            raise UsageError(f"{rule}: {cause_text(error)}; {NO_BATCHES}") from error
        if answer.shape == single.shape:
            wrong = batch_mismatch(single, single, answer)
        else:
            wrong = f"a batch of {_CHECKED_BATCH} gives the shape {list(answer.shape)}"
        if wrong is not None:
            raise UsageError(f"{rule}: {wrong}; {NO_BATCHES}")

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
        for tensor in OnnxGraph(path).weights.values()
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(locations))


def _inputs(header: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the inputs by name, without initializers, which old IR versions list as inputs."""
    weights = {tensor.name for tensor in header.graph.initializer}
    return {value.name: value for value in header.graph.input if value.name not in weights}


def _check_inputs(inputs: Mapping[str, onnx.ValueInfoProto], specs: Iterable[TensorSpec]) -> None:
    given = {spec.name: spec for spec in specs}
    if inputs.keys() != given.keys():
        raise UsageError(
            f"the ONNX graph has the inputs {', '.join(sorted(inputs))};"
            f" the payloads give {', '.join(sorted(given))}"
        )
    for name, spec in given.items():
        _check_input(inputs[name], spec)


def _check_input(value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    import onnx

    if not is_tensor(value):
        raise UsageError(
            f"{spec.name}: the ONNX graph must take a tensor, and takes a {_kind(value)}"
        )
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype != NUMPY_TYPES[spec.data_type]:
        raise UsageError(f"{spec.name}: the ONNX graph takes {dtype}, got {spec.data_type}")
    if not tensor.HasField("shape"):
        return
    sizes = [axis.dim_value or None for axis in tensor.shape.dim]
    if size_of_batch(value) not in {None, 1}:
        raise UsageError(
            f"{spec.name}: the first axis must be a batch, the ONNX graph takes {sizes}"
            f" (None is any size); {NO_BATCHES}"
        )
    fits = len(sizes) == len(spec.shape) + 1 and all(
        size is None or size == given for size, given in zip(sizes[1:], spec.shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"{spec.name}: the ONNX graph takes {sizes} (None is any size),"
            f" got {[None, *spec.shape]}"
        )


def _check_output(header: onnx.ModelProto, name: str) -> None:
    names = [value.name for value in header.graph.output]
    if name not in names:
        raise UsageError(f"the model has no output {name!r}; it has {', '.join(names)}")
    value = next(v for v in header.graph.output if v.name == name)
    if not is_tensor(value):
        tensors = [v.name for v in header.graph.output if is_tensor(v)]
        raise UsageError(
            f"output {name!r} must be a tensor, the ONNX graph gives a {_kind(value)};"
            f" its tensors are {', '.join(tensors) or 'none'}"
        )
    if size_of_batch(value) not in {None, 1}:
        raise UsageError(f"output {name!r} must have a batch as its first axis; {NO_BATCHES}")


def _kind(value: onnx.ValueInfoProto) -> str:
    return (value.type.WhichOneof("value") or "value of no type").removesuffix("_type")


def _output_spec(header: onnx.ModelProto, name: str) -> OutputTensor:
    import onnx

    tensor = next(v.type.tensor_type for v in header.graph.output if v.name == name)
    onnx_type = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if onnx_type not in _TRITON_TYPES:
        raise UsageError(
            f"output {name!r} must be one of {', '.join(_TRITON_TYPES)}, got {onnx_type}"
        )
    sizes = [axis.dim_value or -1 for axis in tensor.shape.dim]
    return OutputTensor(name, _TRITON_TYPES[onnx_type], tuple(sizes[1:]))
