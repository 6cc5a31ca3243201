"""Methods beyond the paper's main experiments: the rest of the package does not import them.

`snfnp.registry` finds them by name.
"""
