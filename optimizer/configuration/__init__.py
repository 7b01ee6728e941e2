"""Serving configurations: parameters, points of a space, and hosts that serve them. Pure."""
