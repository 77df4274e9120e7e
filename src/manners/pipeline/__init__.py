"""One run from its config to its report, and the runs that it starts from."""
