"""One study on disk: its directory, records, history, events, run log and dashboard."""
