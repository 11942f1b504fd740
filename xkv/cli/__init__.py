"""What `python -m xkv` runs beside the library: serving traces, a small paged engine, the demo."""
