"""Differentially private training: sampling, per-unit gradients, clipping, noise, and the plan that binds them."""
