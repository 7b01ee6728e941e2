"""A simulator of Triton: predicts what a configuration would serve, without serving it."""
