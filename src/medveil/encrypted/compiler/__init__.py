"""From a trained network to a program of shared fixed-point operations, and its weights."""
