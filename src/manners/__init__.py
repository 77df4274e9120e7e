"""Manners teaches small language models how to behave, and measures that they learned it."""
