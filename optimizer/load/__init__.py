"""Load tests: arrival schedules, load generator, stopping rules and capacity search."""
