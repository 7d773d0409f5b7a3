"""Data: subjects, sources, splits, sites and the built-in phantom (no torch)."""
