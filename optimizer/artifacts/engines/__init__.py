"""TensorRT engines: one recipe, and three locations where it is built.

`builder.TensorRtBuilder` is the entry point. The precision lies in the ONNX graph alone: networks
are strongly typed, as TensorRT 11 requires and 10.12 and later support.
"""
