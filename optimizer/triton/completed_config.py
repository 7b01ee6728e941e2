"""What a server completes in the configuration of a model, and what of it is written down.

Triton's backends can tell a model's inputs, outputs and batches from its file, and models of the
Python backend in `auto_complete_config`. A config.pbtxt may leave these out, or be missing.
"""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.triton.config_syntax import read_syntax
from optimizer.triton.config_text import edited

_COMPLETED = ("backend", "max_batch_size", "input", "output", "dynamic_batching")
"""Fields that are written down. A server also fills in its defaults elsewhere, such as
version_policy, instance_group and optimization, which mean the same where they are left out."""

_SCHEDULERS = ("dynamic_batching", "sequence_batching", "ensemble_scheduling")


def left_out(text: str) -> tuple[str, ...]:
    """Return the fields that a config.pbtxt leaves to the server.

    Args:
        text: of the file; empty where there is none.
    """
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    if config.HasField("ensemble_scheduling"):
        return ()
    names = {field.name for field in read_syntax(text).fields}
    incomplete = [
        name
        for name, tensors in (("input", config.input), ("output", config.output))
        if not tensors or any(not each.dims or not each.data_type for each in tensors)
    ]
    return (*(["max_batch_size"] if "max_batch_size" not in names else []), *incomplete)


def completed_text(text: str, running: model_config_pb2.ModelConfig) -> str:
    """Return a config.pbtxt with the fields that it leaves out as the server has completed them.

    Args:
        text: of the file; empty where there is none.
        running: the server's configuration of the model.
    """
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    keeps = {"backend"} if config.backend or config.platform else set()
    if any(config.HasField(name) for name in _SCHEDULERS):
        keeps.add("dynamic_batching")
    added = model_config_pb2.ModelConfig()
    added.CopyFrom(running)
    for field, _ in running.ListFields():
        if field.name not in _COMPLETED or field.name in keeps:
            added.ClearField(field.name)
        else:
            config.ClearField(field.name)
    if list(added.dynamic_batching.preferred_batch_size) == [running.max_batch_size]:
        del added.dynamic_batching.preferred_batch_size[:]  # which an empty list means
    config.MergeFrom(added)
    if running.model_transaction_policy.decoupled:
        config.model_transaction_policy.decoupled = True
    return edited(text, config)
