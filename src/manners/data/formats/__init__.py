"""One parser for each file format: only these modules know the column names of a dataset."""
