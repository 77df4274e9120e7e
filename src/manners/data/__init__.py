"""Raw rows → samples → tensors; see README.md.

Only ``formats`` knows a dataset's column names, only ``tokenize`` applies chat templates for training.
"""
