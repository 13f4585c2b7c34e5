"""Entry points: train.py, sweeps, the command `birthplace-lm`. Imports every other package."""
