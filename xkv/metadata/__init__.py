"""`MetadataBuilder`, its buffers and cached launches, and builds captured in graphs."""
