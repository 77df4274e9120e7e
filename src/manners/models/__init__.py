"""Models, tokenizers, chat templates, adapters and generation. The packaged base model is in ``tiny/``."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it recommends another package
