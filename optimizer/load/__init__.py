"""Load tests: when requests are due, who sends them, and how much a configuration can serve."""
