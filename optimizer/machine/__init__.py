"""The machine that trials run on: what it is, how it is divided, what it does meanwhile."""
