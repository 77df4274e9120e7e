"""Models, their tokenizers and templates, and the adapters put on them. The tiny base lies in ``tiny/``."""
