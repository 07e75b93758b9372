"""What is scored at all: a frontal chest film, upright, of enough contrast."""
