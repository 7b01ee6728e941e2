"""Models of the `transformers` package."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.cache import file_digest, versions
from optimizer.artifacts.exported_attention import additive_attention
from optimizer.artifacts.graphs.axis_names import name_axes
from optimizer.configuration.named_parameters import suggestion
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure, RequirementError, UsageError, cause_text
from optimizer.workload.data_types import data_type_of
from optimizer.workload.model_spec import ModelSpec, TransformersSource, chosen_outputs
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import OutputTensor, Tensors, stack

if TYPE_CHECKING:
    import torch

ONNX_OPSET = 20
INLINE_LIMIT_BYTES = 2_000_000_000
"""Larger weights go beside the ONNX file: a protobuf message is limited to 2 GiB."""

_HUB_TIMEOUT_S = 10.0
_TORCH_NAMES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class TransformersModel:
    """A checkpoint (directory or hub name), or an architecture with seeded random weights."""

    model: ModelSpec
    source: TransformersSource

    def fingerprint(self) -> dict[str, object]:
        """Return class, configuration, weights and the versions of the exporting libraries."""
        return {
            "class": self.source.class_name,
            "config": json.loads(self.source.config),
            "seed": self.source.seed,
            "weights": self._weights(),
            "opset": ONNX_OPSET,
            "traces": False,
            "libraries": versions("torch", "transformers", "onnx", "onnxscript"),
        }

    def export_onnx(self, into: Path) -> None:
        """Export with torch's exporter, by way of a `torch.export` program."""
        import onnx
        import torch

        outputs = list(self.model.outputs) or [each.name for each in self.open().outputs]
        try:
            with additive_attention():
                program = self._onnx_program(outputs)
        except torch.onnx.OnnxExporterError as error:
            raise BuildFailure(
                f"{self.source.class_name} cannot be exported to ONNX: {cause_text(error)}; "
                "runtime pytorch serves it without ONNX, and `source: {onnx: FILE}` takes a file "
                "that you export yourself"
            ) from None
        _forget_traces(program.model)
        weights = program.model.graph.initializers.values()
        size = sum(w.const_value.nbytes for w in weights if w.const_value is not None)
        path = into / "model.onnx"
        program.save(path, external_data=size > INLINE_LIMIT_BYTES)
        saved = onnx.load(path, load_external_data=False)
        name_axes(saved.graph, self.model.payloads.as_served())
        onnx.save(saved, path)

    def _onnx_program(self, outputs: list[str]) -> Any:
        import torch

        program = torch.onnx.export(
            self._program("fp32"),
            dynamo=True,
            input_names=[spec.name for spec in self.model.payloads.tensors],
            output_names=outputs,
            opset_version=ONNX_OPSET,
            verbose=False,
        )
        assert program is not None
        return program

    def export_torch(self, into: Path, precision: Precision) -> None:
        """Export a program with the weights in `precision`."""
        import torch

        program = self._program(precision)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if hasattr(module, "graph") else ():
                node.meta.pop("stack_trace", None)
        # Example inputs would be pickled with the program, which runs without them.
        program.example_inputs = None
        torch.export.save(program, into / "model.pt2")

    def open(self) -> OpenedModel:
        """Load the model in FP32."""
        import torch

        module = self._module("fp32")

        def run(request: Tensors) -> Tensors:
            with torch.inference_mode():
                outputs: Mapping[str, torch.Tensor] = module.named_outputs(**_tensors(request))
            return {name: tensor.numpy() for name, tensor in outputs.items()}

        weights = (*module.parameters(), *module.buffers())
        size = sum(each.numel() * each.element_size() for each in weights)
        return OpenedModel(run, self._outputs(run), size)

    def _outputs(self, run: Callable[[Tensors], Tensors]) -> tuple[OutputTensor, ...]:
        """Return the outputs' types and shapes, observed with requests of two sizes."""
        first = second = run(self._example())
        # A model that takes one size only has no free axes.
        with suppress(Exception):
            second = run(self._example(smaller=True))
        outputs = []
        for name, array in first.items():
            sizes = zip(array.shape[1:], second[name].shape[1:], strict=False)
            shape = tuple(size if size == other else -1 for size, other in sizes)
            outputs.append(OutputTensor(name, data_type_of(array), shape))
        return tuple(outputs)

    def _program(self, precision: Precision) -> torch.export.ExportedProgram:
        import torch

        dynamic = torch.export.Dim.DYNAMIC
        axes = {
            spec.name: {0: dynamic}
            | {axis: dynamic for axis, size in enumerate(spec.shape, 1) if isinstance(size, str)}
            for spec in self.model.payloads.tensors
        }
        module = self._module(precision)
        with torch.no_grad():
            try:
                return torch.export.export(
                    module,
                    (),
                    kwargs=_tensors(self._example()),
                    dynamic_shapes=axes,
                    strict=False,
                )
            except Exception as error:  # noqa: BLE001 - of many classes, without a common one
                raise self._not_exported(error) from None

    def _not_exported(self, error: Exception) -> BuildFailure:
        free = sorted({size for spec in self.model.payloads.tensors for size in spec.free})
        remedy = "`source: {onnx: FILE}` takes a file that you export yourself"
        if free:
            remedy = f"write a number for {', '.join(free)} in the inputs' shapes, or {remedy}"
        text = f"{self.source.class_name} cannot be exported by torch.export: {cause_text(error)}"
        return BuildFailure(f"{text}; {remedy}")

    def _example(self, *, smaller: bool = False) -> Tensors:
        """Return a batch of two requests: torch takes an axis of size 1 for a constant.

        Args:
            smaller: whether each free dimension has its smallest size, and is one smaller than
                the largest where it has one size only.
        """
        payloads = self.model.payloads

        def size(own: LengthDistribution) -> LengthDistribution:
            largest = max(own.longest, 2)
            picked = min(*own.lengths, largest - 1) if smaller else largest
            return LengthDistribution((picked,), (1.0,))

        payloads = replace(
            payloads,
            lengths=size(payloads.lengths),
            dimensions=tuple(
                each if each.sizes is None else replace(each, sizes=size(each.sizes))
                for each in payloads.dimensions
            ),
        )
        return stack(payloads.sample(2, np.random.default_rng(0)))

    def _module(self, precision: Precision) -> Any:
        import torch

        dtype = getattr(torch, _TORCH_NAMES[precision])
        names = [spec.name for spec in self.model.payloads.tensors]
        return _tensors_only(self._load().to(dtype), dtype, names, self.model.outputs).eval()

    def _load(self) -> torch.nn.Module:
        import torch
        import transformers

        architecture = getattr(transformers, self.source.class_name, None)
        if architecture is None:
            raise UsageError(f"transformers has no class {self.source.class_name!r}")
        config = json.loads(self.source.config)
        torch.manual_seed(self.source.seed)
        if self.source.checkpoint is not None:
            module = self._from_checkpoint(architecture)
        elif getattr(architecture, "config_class", None) is None:
            raise UsageError(
                f"{self.source.class_name} chooses its architecture from a checkpoint;"
                " random weights need the architecture's own class"
            )
        else:
            self._refuse_unknown(architecture.config_class, config)
            module = self._from_config(architecture, config)
        loaded: torch.nn.Module = module.float()
        return loaded

    def _refuse_unknown(self, config_class: Any, config: Mapping[str, Any]) -> None:
        """Raise UsageError for a key that the configuration would accept and ignore."""
        default = config_class()
        valid_keys = {*default.to_dict(), *config_class.attribute_map}
        for key in config:
            # A private one can name code on the hub, which transformers would load.
            if key.startswith("_") or (key not in valid_keys and not hasattr(default, key)):
                raise UsageError(
                    f"models.{self.model.name}.source.config.{key}: {config_class.__name__} has no "
                    f"such key{suggestion(key, sorted(valid_keys))}"
                )

    def _from_config(self, architecture: Any, config: dict[str, Any]) -> Any:
        try:
            return architecture(architecture.config_class(**config))
        except ImportError as error:  # the text names the package and how to install it
            reason = " ".join(str(error).split())
            raise RequirementError(f"{self.source.class_name} cannot be made: {reason}") from error
        except Exception as error:  # of one of the many architectures
            raise UsageError(
                f"models.{self.model.name}.source.config: {self.source.class_name} cannot be made "
                f"from it: {cause_text(error)}"
            ) from error

    def _from_checkpoint(self, architecture: Any) -> Any:
        import torch

        try:
            return architecture.from_pretrained(
                self.source.checkpoint,
                revision=self._revision,
                dtype=torch.float32,
                # A checkpoint may come with code, and with weights that are a pickle of anything.
                trust_remote_code=False,
                weights_only=True,
            )
        # OSError, ValueError or an error of one of several HTTP libraries.
        except Exception as error:
            raise self._unusable(error) from error

    def _weights(self) -> object:
        if self.source.checkpoint is None:
            return "random"
        directory = Path(self.source.checkpoint)
        if not directory.is_dir():
            return {"hub": self.source.checkpoint, "revision": self._revision}
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        return {path.relative_to(directory).as_posix(): file_digest(path) for path in files}

    @cached_property
    def _revision(self) -> str:
        """Commit of a hub checkpoint: the downloaded one, else the newest; "main" for a directory.

        With a commit, `from_pretrained` does not query the hub for a downloaded checkpoint.
        """
        from huggingface_hub import HfApi, try_to_load_from_cache

        name = str(self.source.checkpoint)
        if Path(name).is_dir():
            return "main"
        try:
            downloaded = try_to_load_from_cache(name, "config.json")
            if isinstance(downloaded, str):
                return Path(downloaded).parent.name
            return str(HfApi().model_info(name, timeout=_HUB_TIMEOUT_S).sha)
        except Exception as error:  # of any HTTP library
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> BuildFailure:
        return BuildFailure(
            f"checkpoint {self.source.checkpoint!r} is neither a directory that transformers can"
            f" load nor available from the hub: {cause_text(error)}"
        )


def _forget_traces(model: Any) -> None:
    """Clear the source files and lines of this machine that torch notes for each node."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()


def _tensors(request: Tensors) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(values) for name, values in request.items()}


def _tensors_only(
    model: torch.nn.Module, dtype: torch.dtype, names: list[str], outputs: Sequence[str]
) -> Any:
    """Wrap `model` to take keyword tensors of the payload's types and return a tuple of tensors.

    Floating-point outputs are FP32. `named_outputs` returns the same tensors by name.

    Args:
        outputs: names of the outputs; empty for all that are tensors.
    """
    import torch

    def named_outputs(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}
        own = model(**cast).items()
        picked = chosen_outputs({n: t for n, t in own if isinstance(t, torch.Tensor)}, outputs)
        return {n: t.float() if t.is_floating_point() else t for n, t in picked.items()}

    def forward(**inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(named_outputs(**inputs).values())

    # torch.export takes the names of the inputs from the signature, and cannot bind **inputs.
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, keyword) for name in names])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    wrapper: Any = torch.nn.Module()
    wrapper.model = model
    wrapper.forward = forward
    wrapper.named_outputs = named_outputs
    return wrapper
