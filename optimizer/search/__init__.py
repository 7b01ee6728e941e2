"""The phases of a run: prepare, calibrate, search and confirm; samplers and recorded tables."""
