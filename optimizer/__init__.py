"""Searches for the cheapest way to serve a model on NVIDIA Triton within a latency limit."""

__version__ = "0.1.0"
