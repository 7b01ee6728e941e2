"""Atomic writes, files that ship with the package, and bounded readers of untrusted files."""
