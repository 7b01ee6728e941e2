"""Handing a configuration out: directories that a production repository takes as they are."""
