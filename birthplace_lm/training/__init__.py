"""One run from configuration to finished checkpoints. Imports `inference` and what lies below it."""
