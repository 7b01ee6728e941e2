"""Plans of fleets: instances for a demand over time, and their cost."""
