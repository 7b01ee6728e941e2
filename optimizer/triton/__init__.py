"""Triton: configuration files, model repositories, servers, and the client that controls them."""
