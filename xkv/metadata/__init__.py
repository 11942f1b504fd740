"""MetadataBuilder: its buffers, its steps, and builds in graphs of their own."""
