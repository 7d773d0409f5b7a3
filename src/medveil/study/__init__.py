"""One plan, one run folder: read the plan, train, evaluate, record."""
