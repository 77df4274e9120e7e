"""MLflow: the logger, the asynchronous writer behind it, the registry, what its UI shows."""
