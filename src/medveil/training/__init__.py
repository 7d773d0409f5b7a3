"""Training on one party's data: batches, augmentation, losses, optimisers, the loop, prediction."""
