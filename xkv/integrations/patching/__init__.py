"""Replacing an engine's kernels and methods: known by their text, found in its files, swapped on import."""
