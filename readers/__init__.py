"""Readers of the published datasets, their download, and what a set holds."""
