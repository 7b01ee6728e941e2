# NVIDIA's Triton with PyTorch for its Python backend, for bert_large.yaml. Programs that torch.export
# wrote need the same or a newer PyTorch.
FROM nvcr.io/nvidia/tritonserver:26.05-py3
RUN pip install --no-cache-dir "torch>=2.13,<2.14"
