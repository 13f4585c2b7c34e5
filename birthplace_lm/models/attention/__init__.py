"""Attention variants: one file each, chosen by the yaml of the same name in `conf/attention/`."""
