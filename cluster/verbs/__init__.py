"""The verbs of `rayscan`, by what they are about."""
