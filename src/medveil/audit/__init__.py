"""Audits: evidence, measured from outside, that the code does what its privacy claim says. Never a proof of it."""
