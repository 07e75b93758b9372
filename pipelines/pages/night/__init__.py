"""The report of a night: what was scored, what needs a person, how the films drift."""
