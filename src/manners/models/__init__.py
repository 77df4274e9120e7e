"""Models, tokenizers, chat templates, adapters and generation. The packaged base model is in ``tiny/``."""
