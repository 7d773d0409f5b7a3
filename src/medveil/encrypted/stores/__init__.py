"""Correlations on disk, each used once."""
