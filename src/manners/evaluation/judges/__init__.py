"""Classifiers of the style of a reply."""
