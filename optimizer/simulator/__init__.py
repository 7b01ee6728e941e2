"""A model of Triton: what a configuration would serve, without serving it. Pure."""
