"""The space file that a person writes: its schema, its reader, and its mistakes by key."""
