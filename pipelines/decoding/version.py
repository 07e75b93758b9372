"""The version of what turns bytes into a film or a reason; every row of the scores names it."""

from typing import Final

DECODER_VERSION: Final = "2"
"""Raise it when decoder or gate can read, or judges, a scan otherwise: `score --again` tries what others gave up."""
