"""What `python -m xkv` runs: info, demo, check, bench and steps; and what they share."""
