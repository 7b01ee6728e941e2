"""Optuna samplers over the valid points of a space."""
