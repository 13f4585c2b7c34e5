"""Several processes: launcher, FSDP2, DTensor helpers, torchrun."""
