"""The training methods. They know neither Hydra nor MLflow: they are handed plain values and ``log(metrics, step)``."""
