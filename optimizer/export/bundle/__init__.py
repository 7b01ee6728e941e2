"""Bundles: a configuration of a study as a directory that a production repository takes."""
