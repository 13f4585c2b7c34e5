"""The network: tensors in, tensors out. Knows no file, configuration or data."""
