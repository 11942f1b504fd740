"""Whole engines with xkv's plugin and without it: the same requests, compared (ci/serve.sh)."""
