"""The speed of training: a bare loop, the same inside Lightning, and GPT-2 of transformers."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.cli.timing import interleave
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.sequences import Batch
from birthplace_lm.models.build import build_model
from birthplace_lm.models.float32_products import MKL, ONEDNN, current_library, float32_products
from birthplace_lm.models.gpt import GPT
from birthplace_lm.training.components import build_datamodule
from birthplace_lm.training.microbatching import microbatched_loss_sum
from birthplace_lm.training.preflight import preflight
from birthplace_lm.training.stage import train_stage

MATRIX = 2048  # rows and columns of the matrix product that measures the machine
WARM_UP = 4  # steps that are not measured inside Lightning, which logs the speed of so many at once


def training_table(
    arguments: Sequence[str], config: DictConfig, corpus: Corpus, rounds: int, steps: int
) -> str:
    """Characters per second in Markdown; see `bench`."""
    batches = training_batches(config, corpus, steps, skip=WARM_UP)
    characters = sum(batch["characters"] for batch in batches)
    dropped = OmegaConf.merge(config, {"model": {"dropout": 0.1}})
    benchmarks: dict[str, Callable[[], float]] = {
        "a bare loop over the same batches": BareLoop(config, corpus, batches),
        "inside Lightning, with logs and data": lambda: _inside_lightning(config, corpus, steps),
        "dropout 0.1": BareLoop(dropped, corpus, batches),  # type: ignore[arg-type]
    }
    if current_library() == ONEDNN:
        loop = BareLoop(config, corpus, batches)

        def by_mkl() -> float:
            with float32_products(MKL):
                return loop()

        benchmarks["the bare loop with products by MKL"] = by_mkl
    other = "synthesizer" if config.labels.attention != "synthesizer" else "vanilla"
    benchmarks[other] = BareLoop(compose([*arguments, f"attention={other}"]), corpus, batches)
    if find_spec("transformers"):
        benchmarks["transformers' GPT2LMHeadModel, bare loop"] = HuggingFaceLoop(config, corpus, batches)
    stage, precision = config.stages.pretrain, config.trainer.precision
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    rates = interleave({"machine": lambda: matrix_rate(dtype), **benchmarks}, rounds)
    machine = median(rates.pop("machine"))
    bare, *_ = rates.values()
    weights = build_model(config.model, len(corpus.vocab))
    cost = flops_per_character(weights, characters / sum(len(batch["inputs"]) for batch in batches))
    lines = [
        f"Training: {weights.num_parameters:,} parameters, batches of {stage.batch_size} rows, {precision},"
        f" {torch.get_num_threads()} threads; a product of two {MATRIX} x {MATRIX} matrices of {dtype} runs"
        f" at {machine / 1e9:.0f} GFLOP/s; {cost / 1e6:.1f} MFLOP a character",
        "",
        "| | characters/s | of the matrix rate | of the bare loop |",
        "| --- | --- | --- | --- |",
    ]
    for name, measured in rates.items():
        rate = median(measured)
        ratio = median(a / b for a, b in zip(measured, bare, strict=True))
        share = "" if name == other else f"{rate * cost / machine:.2f}"  # `cost` is not that of `other`
        lines.append(f"| {name} | {rate:,.0f} | {share} | {ratio:.2f} |")
    return "\n".join(lines)


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product in the precision of the training."""
    a, b = torch.rand(MATRIX, MATRIX).to(dtype), torch.rand(MATRIX, MATRIX).to(dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / median(seconds)


def flops_per_character(model: GPT, length: float) -> float:
    """FLOPs per character of one training step: 2 per weight of a linear layer, in each of three passes.

    Args:
        length: mean characters of a row; attention reads half of them, in two products.
    """
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    width = model.tok_emb.weight.shape[1]
    return 6 * (linear + model.n_layer * width * length)


class BareLoop:
    """Train on a list of batches without Lightning. A call returns characters per second."""

    def __init__(self, config: DictConfig, corpus: Corpus, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.pad_id = corpus.vocab.pad_id
        self.mixed = config.trainer.precision == "bf16-mixed"
        self.model = self._model(config, len(corpus.vocab))
        self.optimizer = instantiate(config.optimizer)(
            model=self.model, lr=config.stages.pretrain.learning_rate
        )
        self._train(batches[:2])  # the first steps allocate

    def __call__(self) -> float:
        began = time.perf_counter()
        self._train(self.batches)
        return sum(batch["characters"] for batch in self.batches) / (time.perf_counter() - began)

    def _train(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
                loss = self._loss(batch) / batch["loss_denominator"]
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _model(self, config: DictConfig, vocab_size: int) -> Any:
        return build_model(config.model, vocab_size)

    def _loss(self, batch: Batch) -> Tensor:
        return microbatched_loss_sum(self.model, batch, self.pad_id)


class HuggingFaceLoop(BareLoop):
    """The same loop with the GPT-2 of transformers, of equal size."""

    def _model(self, config: DictConfig, vocab_size: int) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel  # an optional extra

        sizes = config.model
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=sizes.block_size,
                n_embd=sizes.n_embd,
                n_layer=sizes.n_layer,
                n_head=sizes.n_head,
                activation_function="gelu",
                resid_pdrop=sizes.dropout,
                embd_pdrop=sizes.dropout,
                attn_pdrop=sizes.dropout,
                tie_word_embeddings=False,
            )
        )

    def _loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch["inputs"], use_cache=False).logits.flatten(0, 1)
        return F.cross_entropy(logits, batch["targets"].flatten(), ignore_index=self.pad_id, reduction="sum")


def _inside_lightning(config: DictConfig, corpus: Corpus, steps: int) -> float:
    """Characters per second from the TensorBoard curves of a stage, of the steps after the first four."""
    limits = {
        "accelerator": "cpu",
        "max_steps": WARM_UP + steps,
        "max_epochs": 10**6,
        "check_val_every_n_epoch": 10**6,
        "val_check_interval": None,
        "log_every_n_steps": WARM_UP,
        "enable_progress_bar": False,
    }
    limited: Any = OmegaConf.merge(config, {"trainer": limits})
    with tempfile.TemporaryDirectory() as folder:
        train_stage(replace(preflight(limited, corpus)[0], directory=Path(folder)), corpus)
        events = EventAccumulator(folder)
        events.Reload()
        totals, rates = (
            [event.value for event in events.Scalars(f"pretrain/{name}")]
            for name in ("characters", "characters_per_second")
        )
    characters = [after - before for before, after in pairwise(totals)]
    return sum(characters) / sum(c / rate for c, rate in zip(characters, rates[1:], strict=True))


def training_batches(config: DictConfig, corpus: Corpus, count: int, skip: int = 0) -> list[Batch]:
    """The first `count` batches of pretraining after `skip` batches; epochs follow one another."""
    dataset = build_datamodule(preflight(config, corpus)[0], corpus).train_batches
    return [dataset[divmod(number, len(dataset))] for number in range(skip, skip + count)]
