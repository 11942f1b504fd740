"""Runs whole engines with and without xkv's plugin and compares them (ci/serve.sh)."""
