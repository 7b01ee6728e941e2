"""What guides the guided search: beliefs about every point, and what is worth measuring next."""
