"""What `python -m xkv` runs: info, demo, check, bench and report."""
