"""One page over many runs, from the tracking store alone."""
