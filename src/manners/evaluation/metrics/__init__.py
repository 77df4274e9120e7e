"""What is measured in replies and in reward scores."""
