"""Methods beyond the paper's main experiments: the paper's own rooms do not import them.

`snfnp.registry` finds them by name.
"""
