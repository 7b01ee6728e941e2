"""What optuna-dashboard shows of a study: notes and files that the run writes, and a server."""
