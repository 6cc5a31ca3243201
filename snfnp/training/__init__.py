"""Training: configuration, batches, the step, the loop, and what a run leaves in its folder."""
