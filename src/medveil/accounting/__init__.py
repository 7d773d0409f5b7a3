"""What is spent: events as data, accountants, calibration, meaning, and the ledger. No torch."""
