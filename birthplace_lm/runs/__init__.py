"""A run on disk: directory, lock, status, checkpoints, signals. Imports `config`, `data`, `models`."""
