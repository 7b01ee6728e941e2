"""How an endpoint of SageMaker is asked, for people: what Triton takes at /invocations."""

from __future__ import annotations

from string import Template

from optimizer.export.deployment import Deployment, Input

_NUMPY = {"INT32": "np.int32", "INT64": "np.int64", "FP32": "np.float32"}

_TEXT = Template("""
## Ask it

An endpoint passes to Triton what it is sent: a request of the inference protocol v2, in JSON, or
shorter and faster with the tensors as bytes, behind a head whose length the content type says.

```python
import json

import boto3
import numpy as np
import tritonclient.http as triton  # pip install "tritonclient[http]"

inputs = {
$inputs
}
runtime = boto3.client("sagemaker-runtime")

# As bytes.
tensors = []
for name, values in inputs.items():
    tensor = triton.InferInput(name, list(values.shape), triton.np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    tensors.append(tensor)
body, head = triton.InferenceServerClient.generate_request_body(tensors)
reply = runtime.invoke_endpoint(
    EndpointName="$name",
    ContentType=f"application/vnd.sagemaker-triton.binary+json;json-header-size={head}",
    Body=body,
)
head = int(reply["ContentType"].partition("json-header-size=")[2])
found = triton.InferenceServerClient.parse_response_body(reply["Body"].read(), header_length=head)
for output in found.get_response()["outputs"]:
    print(output["name"], found.as_numpy(output["name"]))

# As JSON.
body = [
    {
        "name": name,
        "shape": values.shape,
        "datatype": triton.np_to_triton_dtype(values.dtype),
        "data": values.ravel().tolist(),
    }
    for name, values in inputs.items()
]
reply = runtime.invoke_endpoint(
    EndpointName="$name",
    ContentType="application/json",
    Body=json.dumps({"inputs": body}),
)
print(json.loads(reply["Body"].read())["outputs"])
```

$measured
""")

_OVER_GRPC = """\
The study measured over gRPC, and SageMaker speaks HTTP alone: what that costs is in none of the
figures here. A study with `traffic: {transport: {protocol: http}}` measures it. What SageMaker puts
before the container is in no study."""

_OVER_HTTP = """\
The study measured over HTTP, as SageMaker speaks it; what SageMaker puts before the container is in
no figure here."""


def asking(deployment: Deployment) -> str:
    """A section of a README, with code that asks the deployment's endpoint."""
    return _TEXT.substitute(
        name=deployment.name,
        inputs="\n".join(_array(each) for each in deployment.models[0].inputs),
        measured=_OVER_GRPC if deployment.protocol == "grpc" else _OVER_HTTP,
    )


def _array(each: Input) -> str:
    shape, kind = list(each.shape), _NUMPY[each.data_type]
    return f'    "{each.name}": np.full({shape}, {each.value:g}, {kind}),'
