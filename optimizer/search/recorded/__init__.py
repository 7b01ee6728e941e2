"""Recorded tables: how they are measured, kept, and searched in the place of a server."""
