"""Networks that pass every later stage: private training, attack tests and encrypted evaluation."""
