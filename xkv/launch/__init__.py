"""From a `Build` to its launch: scheduled, compiled once, cached, and compared with the oracle on request."""
