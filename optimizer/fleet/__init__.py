"""What instances cost, and how many of them a demand needs."""
