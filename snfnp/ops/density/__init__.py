"""Log-densities of latents."""
