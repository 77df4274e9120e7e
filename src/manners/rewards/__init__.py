"""What a policy is scored by: a weighted sum of reward functions."""
