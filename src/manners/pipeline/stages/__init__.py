"""What a run does between its start and its end, for each method: load, measure, train, measure again, save, show."""
