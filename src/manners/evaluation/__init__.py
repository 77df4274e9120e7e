"""What a model does before and after training: its replies, their manner, and how sure we can be of it."""
