"""What a production server's counters tell: demand, service times, and what to change."""
