"""Processes of the operating system: forks, signals, the terminal."""
