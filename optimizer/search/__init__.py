"""The search: phases of a run, the Optuna study, and what is kept of every trial."""
