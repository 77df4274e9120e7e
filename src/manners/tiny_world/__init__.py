"""The tiny world: a few hundred subjects with true facts, corpora generated from them, and the tiny base model."""
