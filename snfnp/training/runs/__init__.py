"""A run's folder: its files, its lock, its checkpoints, and a run opened again from it."""
