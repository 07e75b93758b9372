"""What a search left behind: its trials, its winner, and what can be said of them."""
