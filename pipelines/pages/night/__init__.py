"""The report of a night: what was scored, what needs attention, how the films drift."""
