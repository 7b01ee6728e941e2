"""What people read of results: tables, sentences, charts, Markdown, and pages in one file."""
