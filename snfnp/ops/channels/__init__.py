"""What is done channel by channel: sums, and actnorm."""
