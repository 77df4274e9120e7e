"""The entry points: the command line, its help and its errors."""
