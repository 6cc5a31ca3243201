"""A training step: the trainer, batches, Adam, λ, and coordinates that it preconditions."""
