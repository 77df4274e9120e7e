"""Sweeps: several jobs of ``train.py -m``, as a grid or a search, and the report on them."""
