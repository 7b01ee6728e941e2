"""How many instances of which types a demand needs over time, and what that costs."""
