"""Analysis of studies, from their records alone."""
