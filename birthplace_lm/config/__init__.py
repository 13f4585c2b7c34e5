"""Compose, validate and explain configurations. Imports `errors` only; torch inside functions."""
