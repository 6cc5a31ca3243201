"""What `scripts/mutate.py` needs: how mutants are made, and what is known about some of them."""
