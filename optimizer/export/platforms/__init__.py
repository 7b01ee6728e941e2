"""Formats for platforms that a server is deployed on: from a `Deployment` to files."""
