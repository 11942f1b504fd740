"""What `python -m xkv` runs: info, demo, check and bench."""
