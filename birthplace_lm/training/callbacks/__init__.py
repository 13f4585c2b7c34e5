"""Lightning callbacks: checkpointing, curves, samples, EMA, progress."""
