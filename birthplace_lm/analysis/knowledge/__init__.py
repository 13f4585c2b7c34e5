"""What a model knows: bits, confidence, and where its answers come from. Imports no training."""
