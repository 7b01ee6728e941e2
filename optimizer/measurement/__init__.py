"""Measured load levels, capacities, costs and trial records."""
