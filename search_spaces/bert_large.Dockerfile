# NVIDIA's Triton, with PyTorch for its Python backend: what bert_large.yaml serves with. Programs
# that torch.export wrote are read by the same or a newer PyTorch.
FROM nvcr.io/nvidia/tritonserver:26.05-py3
RUN pip install --no-cache-dir "torch>=2.13,<2.14"
