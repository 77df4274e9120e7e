"""A finished run as a folder that plain transformers loads, with a card that says what it is."""
