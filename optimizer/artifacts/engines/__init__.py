"""TensorRT engines: one recipe, one way to build, three places where it runs.

`builder.TensorRtBuilder` is the way in. Precision lives in the ONNX graph alone: networks are
strongly typed, which is the one way that works on TensorRT 10.12 and later and on 11.
"""
