"""ONNX graphs of a model: conversion to 16 bits and to INT8, and TensorRT's rules."""
