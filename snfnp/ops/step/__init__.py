"""The rest of a training step, beside its layers: its scalars, its log, Adam, λ's control."""
