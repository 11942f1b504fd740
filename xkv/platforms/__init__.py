"""What the machine has, and what a tuning row and the spec of a backend are."""
