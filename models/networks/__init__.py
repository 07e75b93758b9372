"""Networks and what a network needs to read a film and answer: weights, preprocessing, familiarity."""
