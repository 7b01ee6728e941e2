"""The machine that trials run on: fingerprint, cores, GPUs, utilisation and Docker engine."""
