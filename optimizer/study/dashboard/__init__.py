"""optuna-dashboard for a study: the notes and files that the run writes, and a server."""
