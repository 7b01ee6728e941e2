"""Python-backend model that calls others (BLS): each request passes through the steps in turn.

The requests of an execution are passed on at once, so that the steps' batchers can join them. The
parameter `steps` of config.pbtxt lists model, inputs and outputs of each step; the inputs have the
names of outputs of the step before.
"""

import asyncio
import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model; Triton starts one process for each."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        self.steps = json.loads(config["parameters"]["steps"]["string_value"])

    async def execute(self, requests):
        return await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        for step in self.steps:
            call = pb_utils.InferenceRequest(
                model_name=step["model"],
                requested_output_names=step["outputs"],
                inputs=[tensors[name] for name in step["inputs"]],
            )
            reply = await call.async_exec()
            if reply.has_error():
                message = f"step {step['model']}: {reply.error().message()}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
            tensors = {tensor.name(): tensor for tensor in reply.output_tensors()}
        return pb_utils.InferenceResponse([tensors[name] for name in self.outputs])
