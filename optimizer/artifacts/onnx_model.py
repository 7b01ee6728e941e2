"""Models given as an ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.cache import FileState, file_digest, file_state
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure, UsageError, cause_text
from optimizer.workload.data_types import NUMPY_TYPES, DataType
from optimizer.workload.model_spec import ModelSpec, OnnxSource
from optimizer.workload.streams import OutputTensor, Tensors, TensorSpec

if TYPE_CHECKING:
    import onnx

_TRITON_TYPES: dict[str, DataType] = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
}
"""Triton's names of the ONNX element types."""


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
        header = self._checked_header()
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
        import onnxruntime

        outputs = _outputs(self._checked_header(), self.model.outputs)
        files = [self.source.path, *map(self._beside, self._external_names())]
        session = onnxruntime.InferenceSession(self.source.path, providers=["CPUExecutionProvider"])

        names = [output.name for output in outputs]

        def run(request: Tensors) -> Tensors:
            return dict(zip(names, session.run(names, request), strict=True))

        return OpenedModel(run, outputs, sum(file.stat().st_size for file in files))

    def _checked_header(self) -> onnx.ModelProto:
        """Return the graph without its external data, after checking payloads and outputs."""
        with _readable(self.source.path):
            header = _header(self.source.path)
        _check_inputs(header, self.model.payloads.tensors)
        _check_outputs(header, self.model.outputs)
        return header

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
        for tensor in _header(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(locations))


def _check_inputs(header: onnx.ModelProto, specs: Iterable[TensorSpec]) -> None:
    weights = {tensor.name for tensor in header.graph.initializer}
    inputs = {value.name: value for value in header.graph.input if value.name not in weights}
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

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype != NUMPY_TYPES[spec.data_type]:
        raise UsageError(f"{spec.name}: the ONNX graph takes {dtype}, got {spec.data_type}")
    sizes = [axis.dim_value or None for axis in tensor.shape.dim]
    if sizes[:1] != [None]:
        raise UsageError(f"{spec.name}: the first axis must be a dynamic batch, got {sizes[:1]}")
    given = spec.sized(dict.fromkeys(spec.free, 0))
    fits = len(sizes) == len(given) + 1 and all(
        size is None or size == own for size, own in zip(sizes[1:], given, strict=True)
    )
    if not fits:
        raise UsageError(
            f"{spec.name}: the ONNX graph takes {sizes} (None is any size),"
            f" got [None, {', '.join(map(str, spec.shape))}]"
        )


def _check_outputs(header: onnx.ModelProto, wanted: Sequence[str]) -> None:
    names = [value.name for value in header.graph.output]
    for name in wanted:
        if name not in names:
            raise UsageError(f"the model has no output {name!r}; it has {', '.join(names)}")


def _outputs(header: onnx.ModelProto, wanted: Sequence[str]) -> tuple[OutputTensor, ...]:
    """Return the wanted outputs, all of the graph where none is named."""
    values = {value.name: value for value in header.graph.output}
    return tuple(_output(values[name]) for name in wanted or values)


def _output(value: onnx.ValueInfoProto) -> OutputTensor:
    import onnx

    tensor = value.type.tensor_type
    onnx_type = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if onnx_type not in _TRITON_TYPES:
        raise UsageError(
            f"output {value.name!r} must be one of {', '.join(_TRITON_TYPES)}, got {onnx_type}"
        )
    sizes = [axis.dim_value or -1 for axis in tensor.shape.dim]
    return OutputTensor(value.name, _TRITON_TYPES[onnx_type], tuple(sizes[1:]))
