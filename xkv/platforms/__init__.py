"""Device detection, and the types of tuning rows and backend specs."""
