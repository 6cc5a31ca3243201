"""The parts of `reproduce.py`: the paper's tables as runs, how they are run, how they are shown."""
