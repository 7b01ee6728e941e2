"""Recorded tables: how they are measured, stored, and searched instead of a server."""
