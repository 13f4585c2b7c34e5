"""Pretrain, finetune and evaluate: `python train.py ...` is `birthplace-lm train ...`."""

import sys

from birthplace_lm.runs import signals

signals.install()  # first of all: the imports below take a moment

from birthplace_lm.cli.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
