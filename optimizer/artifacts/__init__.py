"""From a model's source to the files that each runtime loads, and their accuracy.

`build_process.BuildProcess` is the entry point. Everything that imports torch, ONNX or OpenVINO
runs in its child process.
"""
