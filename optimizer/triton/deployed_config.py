"""The configuration of a model in an existing repository: what it means, and changes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.configuration.model_graph import Step
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import UsageError
from optimizer.files.untrusted import UnreadableError, read_text
from optimizer.triton.config_text import edited
from optimizer.triton.model_config import (
    data_type_in,
    merge_fields,
    outputs_of_config,
    read_queue_policy,
    write_queue_policy,
)
from optimizer.workload.model_spec import RepositorySource, chosen_outputs
from optimizer.workload.streams import OutputTensor, Payloads, TensorSpec

CONFIG_FILE = "config.pbtxt"


def read_deployed(folder: Path) -> tuple[str, model_config_pb2.ModelConfig]:
    """Return the text and the content of a model's config.pbtxt.

    Raises:
        UsageError: when there is none, or it is no ModelConfig.
    """
    path = folder / CONFIG_FILE
    try:
        text = read_text(path)
        return text, text_format.Parse(text, model_config_pb2.ModelConfig())
    except (UnreadableError, text_format.ParseError, RecursionError) as error:
        raise UsageError(f"{path} is not a Triton model configuration: {error}") from error


def read_if_present(folder: Path) -> tuple[str, model_config_pb2.ModelConfig]:
    """Return what `read_deployed` does; empty where the model has no config.pbtxt."""
    if (folder / CONFIG_FILE).exists():
        return read_deployed(folder)
    return "", model_config_pb2.ModelConfig()


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder has a configuration, or at least a version, which is a number."""
    if not folder.is_dir():
        return False
    return any(
        each.name == CONFIG_FILE or (each.name.isdecimal() and each.is_dir())
        for each in folder.iterdir()
    )


def model_folders(repository: Path) -> list[Path]:
    """Return the folders of a repository that are models, by name."""
    return [folder for folder in sorted(repository.iterdir()) if is_model_folder(folder)]


def read_source(source: RepositorySource) -> model_config_pb2.ModelConfig:
    """Return the configuration of a deployed model, completed if that was necessary.

    Raises:
        UsageError: when there is none, or it is no ModelConfig.
    """
    if source.completed:
        return text_format.Parse(source.completed, model_config_pb2.ModelConfig())
    return read_deployed(source.folder)[1]


def served_versions(folder: Path, config: model_config_pb2.ModelConfig) -> tuple[int, ...]:
    """Return the versions of a model that its version_policy serves, ascending."""
    names = [each.name for each in folder.iterdir() if each.is_dir()]
    # Triton ignores folders whose names begin with 0.
    versions = sorted(int(n) for n in names if n.isdecimal() and not n.startswith("0"))
    policy = config.version_policy
    if policy.HasField("all"):
        return tuple(versions)
    if policy.HasField("specific"):
        return tuple(version for version in versions if version in policy.specific.versions)
    return tuple(versions[-(policy.latest.num_versions or 1) :])


def backend_of(config: model_config_pb2.ModelConfig) -> str:
    """Return the backend that executes a model; empty where the configuration names none."""
    if config.backend:
        return str(config.backend)
    return _BACKEND_OF.get(config.platform, "")


_BACKEND_OF = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}


def refusal_of(config: model_config_pb2.ModelConfig) -> str | None:
    """Return why a model cannot be tuned, and what to do instead; None where it can."""
    if config.HasField("sequence_batching"):
        return (
            "sequence_batching: requests of a stateful model depend on earlier ones, and load "
            "tests here send independent requests; use perf_analyzer with --sequence-length"
        )
    if config.model_transaction_policy.decoupled:
        return (
            "model_transaction_policy.decoupled: a request of a decoupled model has any number of "
            "replies, and load tests here count one; use genai-perf or perf_analyzer --streaming"
        )
    return None


def deployed_values(config: model_config_pb2.ModelConfig) -> Mapping[str, Value]:
    """Return the values of the parameters that a configuration holds."""
    batcher, largest = config.dynamic_batching, max(1, config.max_batch_size)
    policy = read_queue_policy(batcher)
    counts = [max(1, group.count) for group in config.instance_group]
    return {
        "batching": config.HasField("dynamic_batching"),
        "max_batch_size": largest,
        "preferred_batch_sizes": _preferred(batcher, largest) or "none",
        "max_queue_delay_us": int(batcher.max_queue_delay_microseconds),
        "instance_count": sum(counts) or 1,
        "response_cache": bool(config.response_cache.enable),
        "max_queue_size": policy.max_queue_size or "off",
        "default_timeout_microseconds": policy.timeout_us or "off",
        "timeout_action": policy.timeout_action,
    }


def _preferred(batcher: model_config_pb2.ModelDynamicBatching, largest: int) -> tuple[int, ...]:
    """Return the preferred batch sizes; none where there is only the one that Triton takes then."""
    sizes = tuple(sorted(batcher.preferred_batch_size))
    return sizes if sizes != (largest,) else ()


def overlay(
    base: model_config_pb2.ModelConfig, model: ModelServing
) -> model_config_pb2.ModelConfig:
    """Return a deployed configuration with those fields changed that `model` has otherwise."""
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(base)
    if base.name:
        config.name = model.name
    deployed = deployed_values(base)
    if model.batching is None:
        # Without effect, as where one request fills the largest batch, the batcher stays.
        if base.max_batch_size > model.max_batch_size:
            config.ClearField("dynamic_batching")
    else:
        batcher, wanted = config.dynamic_batching, model.batching
        batcher.SetInParent()
        config.max_batch_size = model.max_batch_size
        if _preferred(batcher, model.max_batch_size) != wanted.preferred_batch_sizes:
            del batcher.preferred_batch_size[:]
            batcher.preferred_batch_size.extend(wanted.preferred_batch_sizes)
        if wanted.max_queue_delay_us != deployed["max_queue_delay_us"]:
            batcher.max_queue_delay_microseconds = wanted.max_queue_delay_us
        if wanted.queue_policy != read_queue_policy(batcher):
            write_queue_policy(batcher.default_queue_policy, wanted)
    if model.most_instances != deployed["instance_count"]:
        group = config.instance_group[0] if base.instance_group else config.instance_group.add()
        group.count = model.most_instances
    if model.cache != deployed["response_cache"]:
        config.response_cache.enable = model.cache
    merge_fields(config, model.parameters)
    return config


def served_text(folder: Path, model: ModelServing) -> tuple[str, model_config_pb2.ModelConfig]:
    """Return the config.pbtxt of a model in `folder` with the settings of `model`, and its content.

    Only the fields that differ are changed in the text.
    """
    text, base = read_deployed(folder)
    config = overlay(base, model)
    return edited(text, config), config


def ensemble_steps(config: model_config_pb2.ModelConfig) -> tuple[Step, ...]:
    """Return the steps of an ensemble, which follow those that make the tensors that they take."""
    steps = config.ensemble_scheduling.step
    makers = {tensor: n for n, step in enumerate(steps) for tensor in step.output_map.values()}
    return tuple(
        Step(
            step.model_name,
            tuple(sorted({makers[t] for t in step.input_map.values() if t in makers})),
        )
        for step in steps
    )


def versions_without_files(config: model_config_pb2.ModelConfig) -> tuple[int, ...]:
    """Return the versions whose folders Triton needs though they hold no file: an ensemble's."""
    if not config.HasField("ensemble_scheduling"):
        return ()
    return tuple(config.version_policy.specific.versions) or (1,)


def deployed_outputs(
    config: model_config_pb2.ModelConfig, names: Sequence[str]
) -> tuple[OutputTensor, ...]:
    """Return the named outputs of a configuration, all where none is named.

    Raises:
        UsageError: where there is no such output, or one has no data type.
    """
    try:
        outputs = {output.name: output for output in outputs_of_config(config)}
    except ValueError as error:
        raise UsageError(f"output {error}") from error
    return tuple(chosen_outputs(outputs, names).values())


def check_inputs(config: model_config_pb2.ModelConfig, payloads: Payloads) -> None:
    """Check that requests fit the inputs of a configuration.

    Raises:
        UsageError: with every tensor that does not fit.
    """
    mistakes = list(_input_mistakes(config, payloads))
    if mistakes:
        raise UsageError("the inputs do not fit the configuration:\n  " + "\n  ".join(mistakes))


def _input_mistakes(config: model_config_pb2.ModelConfig, payloads: Payloads) -> Iterator[str]:
    inputs = {each.name: each for each in config.input}
    given = {spec.name: spec for spec in payloads.tensors}
    for name in given.keys() - inputs.keys():
        yield f"{name}: the model has no such input; it has {', '.join(inputs)}"
    for name, each in inputs.items():
        if name not in given:
            if not each.optional:
                yield f"{name}: the model needs this input, and the space file does not give it"
            continue
        yield from _tensor_mistakes(each, given[name])
    batched = config.max_batch_size > 0
    if batched != payloads.batched:
        wanted = str(batched).lower()
        yield f"batched: must be {wanted}: the model's max_batch_size is {config.max_batch_size}"


def _tensor_mistakes(tensor: model_config_pb2.ModelInput, spec: TensorSpec) -> Iterator[str]:
    try:
        data_type = data_type_in(tensor)
    except ValueError as error:
        yield str(error)
        return
    if data_type != spec.data_type:
        yield f"{spec.name}: the model takes {data_type}, got {spec.data_type}"
    dims, given = list(tensor.dims), spec.sized(dict.fromkeys(spec.free, -1))
    fits = len(dims) == len(given) and all(
        own in (-1, size) for own, size in zip(dims, given, strict=True)
    )
    if not fits:
        yield f"{spec.name}: the model takes {dims} (-1 is any size), got {list(spec.shape)}"
