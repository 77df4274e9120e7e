"""The small world: a few hundred subjects with true facts, and the language that speaks of them.

``facts`` reads the tables, ``corpus`` writes the text that the tiny base model is trained on, ``exam`` asks that
model what it learned, ``pretrain`` trains it (``make tiny``), and ``strictbot`` turns the same facts into a
corpus of good questions, poor logic and wrong facts.
"""
