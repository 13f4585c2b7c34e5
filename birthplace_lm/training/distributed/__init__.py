"""Several processes: our launcher, those of others, FSDP2, DTensor helpers."""
