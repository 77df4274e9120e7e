"""Every option, and how a command line becomes a config that can run."""
