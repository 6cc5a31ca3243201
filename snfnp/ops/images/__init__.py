"""Batches of images, and a flow's inputs made of their bytes."""
