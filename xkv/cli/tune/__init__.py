"""The sweep for tuning rows, `python -m xkv.cli.tune`: what ci/tune.py and `python -m xkv report` run."""
