"""Prices of instance types, and fleets for a demand."""
