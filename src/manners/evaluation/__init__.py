"""Evaluation of language models and reward models: metrics with confidence intervals, and reports."""
