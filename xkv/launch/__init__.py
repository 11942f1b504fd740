"""From what one launch reads and writes to the launch: compiled once, kept in a cache, checked on request."""
