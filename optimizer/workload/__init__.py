"""What a model is asked to serve: streams, tensors and arrival processes."""
