"""Pages that people read: tables and charts in one file, without a network."""
