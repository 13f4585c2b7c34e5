"""Corpora: strict readers of text and question files, and the synthetic corpus."""
