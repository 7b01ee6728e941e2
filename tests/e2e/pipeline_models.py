"""A pipeline of the Python backend as other people write it: text in, label out, as an ensemble."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.repository_models import write_model

TOKENIZER = """\
backend: "python"
max_batch_size: 8
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "IDS" data_type: TYPE_INT64 dims: [ 4 ] } ]
"""
TOKENIZER_CODE = """
        responses = []
        for request in requests:
            texts = [text[0] for text in tensor(request, "TEXT")]
            ids = np.array([list(text[:4].ljust(4, b" ")) for text in texts], dtype=np.int64)
            responses.append(response(IDS=ids))
        return responses
"""

CLASSIFIER = """\
# The slow step: its time does not depend on the size of the batch.
backend: "python"
max_batch_size: 8
input [ { name: "TOKENS" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "LOGITS" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
CLASSIFIER_CODE = """
        time.sleep(0.005)
        responses = []
        for request in requests:
            total = tensor(request, "TOKENS").sum(1).astype(np.float32)
            responses.append(response(LOGITS=np.stack([total, 400 - total], 1)))
        return responses
"""
WRONG_ROWS_CODE = """
        # What is computed for the first request of an execution answers all of them.
        total = tensor(requests[0], "TOKENS").sum(1).astype(np.float32)[:1]
        rows = [len(tensor(request, "TOKENS")) for request in requests]
        first = np.stack([total, 400 - total], 1)
        return [response(LOGITS=np.repeat(first, n, 0)) for n in rows]
"""

LABELLER = """\
backend: "python"
max_batch_size: 8
input [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "NAME" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
LABELLER_CODE = """
        names = np.array([b"long", b"short"], dtype=np.object_)
        return [
            response(NAME=names[tensor(request, "SCORES").argmax(1)][:, None])
            for request in requests
        ]
"""

ENSEMBLE = """\
platform: "ensemble"
max_batch_size: 8
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "tokenizer"
      model_version: -1
      input_map { key: "TEXT" value: "TEXT" }
      output_map { key: "IDS" value: "ids" }
    },
    {
      model_name: "classifier"
      model_version: -1
      input_map { key: "TOKENS" value: "ids" }
      output_map { key: "LOGITS" value: "logits" }
    },
    {
      model_name: "labeller"
      model_version: -1
      input_map { key: "SCORES" value: "logits" }
      output_map { key: "NAME" value: "LABEL" }
    }
  ]
}
"""


def write_pipeline(repository: Path, classifier_code: str = CLASSIFIER_CODE) -> Path:
    """Write the ensemble "text_classifier" and its three steps; return the repository."""
    write_model(repository, "tokenizer", TOKENIZER, TOKENIZER_CODE)
    write_model(repository, "classifier", CLASSIFIER, classifier_code)
    write_model(repository, "labeller", LABELLER, LABELLER_CODE)
    folder = repository / "text_classifier"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(ENSEMBLE)
    return repository


BLS = """\
# The same three models, called by code of our own.
backend: "python"
max_batch_size: 8
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
BLS_CODE = """
        return [response(LABEL=self.label(tensor(request, "TEXT"))) for request in requests]

    def label(self, texts):
        ids = self.call("tokenizer", "IDS", TEXT=texts)
        logits = self.call("classifier", "LOGITS", TOKENS=ids)
        return self.call("labeller", "NAME", SCORES=logits)
"""
CALL = """
    def call(self, model, output, **inputs):
        tensors = [pb_utils.Tensor(name, value) for name, value in inputs.items()]
        request = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=[output], inputs=tensors
        )
        reply = request.exec()
        if reply.has_error():
            raise pb_utils.TritonModelException(reply.error().message())
        return pb_utils.get_output_tensor_by_name(reply, output).as_numpy()
"""


def write_bls(repository: Path, classifier_code: str = CLASSIFIER_CODE) -> Path:
    """Write the BLS model "text_bls" beside the ensemble and its steps."""
    write_pipeline(repository, classifier_code)
    write_model(repository, "text_bls", BLS, BLS_CODE + CALL)
    return repository


FRONT_CODE = """
        return [
            response(LABEL=self.call("text_bls", "LABEL", TEXT=tensor(request, "TEXT")))
            for request in requests
        ]
"""


def write_nested_bls(repository: Path) -> Path:
    """Write the BLS model "front_bls", which calls "text_bls", beside all the others."""
    write_bls(repository)
    write_model(repository, "front_bls", BLS, FRONT_CODE + CALL)
    return repository
