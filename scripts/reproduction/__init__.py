"""The parts of `reproduce.py`: the paper's tables as runs, their training, and their pages."""
