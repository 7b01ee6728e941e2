"""Python-backend model: joins the requests of a batch, executes them at once, splits the outputs.

session.py beside this file opens the model file with one runtime. Settings come from config.pbtxt:
parameters `intra_op_threads` and `precision`, and the names of inputs and outputs.
"""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils
from session import open_session


class TritonPythonModel:
    """One instance of the model; Triton starts one process for each."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        self.batched = config["max_batch_size"] > 0
        on_gpu = args["model_instance_kind"] == "GPU"
        self.run = open_session(
            directory=os.path.join(args["model_repository"], args["model_version"]),
            outputs=self.outputs,
            precision=parameters["precision"],
            threads=int(parameters["intra_op_threads"]),
            gpu=int(args["model_instance_device_id"]) if on_gpu else None,
        )

    def execute(self, requests):
        inputs = [self.inputs_of(request) for request in requests]
        if not self.batched:
            return [self.response(self.run(each)) for each in inputs]
        # Triton batches only requests of equal shape, so their tensors join along the batch axis.
        sizes = [len(each[self.inputs[0]]) for each in inputs]
        batch = inputs[0] if len(inputs) == 1 else self.joined(inputs)
        splits = np.cumsum(sizes)[:-1]
        columns = [np.split(array, splits) for array in self.run(batch)]
        return [self.response(arrays) for arrays in zip(*columns, strict=True)]

    def inputs_of(self, request):
        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self.inputs
        }

    def joined(self, inputs):
        return {name: np.concatenate([each[name] for each in inputs]) for name in self.inputs}

    def response(self, arrays):
        pairs = zip(self.outputs, arrays, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, array) for n, array in pairs])
