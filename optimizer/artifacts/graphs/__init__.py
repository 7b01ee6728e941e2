"""ONNX graphs of a model: conversion to 16 bits and to INT8, and the rules of runtimes."""
