"""Bytes between parties: frames, links, TLS, certificates."""
