"""Processes of the operating system: their launch, their signals, their terminal."""
