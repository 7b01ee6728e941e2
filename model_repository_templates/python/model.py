"""Python-backend model: joins the requests of a batch, executes them at once, splits the output.

session.py beside this file opens the model file with one runtime. Settings come from config.pbtxt:
parameters `intra_op_threads` and `precision`, and the names of inputs and output.
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
        self.output = config["output"][0]["name"]
        on_gpu = args["model_instance_kind"] == "GPU"
        self.run = open_session(
            directory=os.path.join(args["model_repository"], args["model_version"]),
            output=self.output,
            precision=parameters["precision"],
            threads=int(parameters["intra_op_threads"]),
            gpu=int(args["model_instance_device_id"]) if on_gpu else None,
        )

    def execute(self, requests):
        # Triton batches only requests of equal shape, so their tensors join along the batch axis.
        columns = {
            name: [pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests]
            for name in self.inputs
        }
        sizes = [len(part) for part in columns[self.inputs[0]]]
        batch = {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts)
            for name, parts in columns.items()
        }
        outputs = np.split(self.run(batch), np.cumsum(sizes)[:-1])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self.output, array)]) for array in outputs
        ]
