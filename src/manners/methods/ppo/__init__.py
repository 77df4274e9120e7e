"""PPO on language: ``loop`` runs it, as rollout → score → advantages → update."""
