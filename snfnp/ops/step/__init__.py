"""What a training step needs beside its layers: its scalars, its log, Adam, λ's control."""
