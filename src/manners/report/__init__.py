"""An HTML page and Markdown tables over all runs of a tracking store."""
