"""Who decides whether a reply has the right style."""
