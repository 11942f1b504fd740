"""The Triton kernel: entry, tile scheduler, the loads and stores of a tile, the bounds of a row."""
