"""Answers to questions about finished studies, from their records alone."""
