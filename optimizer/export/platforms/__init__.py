"""One module for each platform that a server is put on: from a `Deployment` to files."""
