"""Methods beyond the paper's main experiments. The rest of the package imports them where an option
asks for one, and works without this folder."""
