"""One study on disk: its directory, records, history, events, status and dashboard."""
