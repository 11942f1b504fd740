"""The kernel, in Triton: its entry and tile scheduler, what is done to a tile, what is known of a row."""
