"""Export a finished run as a folder that plain transformers loads, with a model card."""
