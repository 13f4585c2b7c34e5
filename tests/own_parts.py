"""Parts of a user, one of each kind, as `plugins=[own_parts]` allows them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from birthplace_lm.data.datamodule import QuestionAnsweringDataModule
from birthplace_lm.data.masking.spans import RandomSpans
from birthplace_lm.models.attention.vanilla import VanillaAttention


class ScaledAttention(VanillaAttention):
    """Needs the number of its layer: bug: an argument `layer` without a default was "missing"."""

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float, layer: int, gain: float
    ) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        assert layer in (0, 1)
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return self.gain * super().forward(x, cache)


class LooksAhead(VanillaAttention):
    """Breaks the contract of attention variants."""

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return super().forward(x, cache) + 0.1 * x.roll(-1, 1)


class ReadsANumber(VanillaAttention):
    """Cannot be built on the meta device."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        self.slopes = [slope.item() for slope in torch.linspace(0, 1, 4)]


class OwnSpans(RandomSpans):
    """Its constructor is inherited."""

    warnings = ("mine",)


class OwnQuestions(QuestionAnsweringDataModule):
    def __init__(self, corpus: Any, loading: Any, block_size: int, ascii_only: bool, repeats: int) -> None:
        super().__init__(corpus, loading, block_size, ascii_only)
        self.train_sources = [*self.train_sources] * repeats


class CountingSGD(SGD):
    """Its rate falls with its own count of steps, which it keeps beside its settings, as Prodigy does."""

    def __init__(self, model: nn.Module, lr: float, momentum: float) -> None:
        super().__init__(model.parameters(), lr=lr, momentum=momentum)
        self.param_groups[0]["count"] = 0

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for group in self.param_groups:
            group["count"] += 1
            group["lr"] /= group["count"]
        super().step()
        return loss


def sgd(model: nn.Module, lr: float, momentum: float) -> Optimizer:
    return CountingSGD(model, lr, momentum)


def constant(total_positions: int, factor: float) -> Callable[[int], float]:
    return lambda positions: factor


class GradientNoise(L.Callback):
    """Adds noise from a generator of its own to every gradient, so that its state decides the weights."""

    def __init__(self, scale: float = 0.1) -> None:
        self.scale = scale
        self.generator = torch.Generator().manual_seed(1)
        self.steps = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self.steps += 1
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad += self.scale * torch.randn(parameter.shape, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.generator.set_state(state_dict["generator"])
        self.steps = state_dict["steps"]


class Forgetful(GradientNoise):
    """As GradientNoise, without its state."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class Unsaveable(L.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"best": Path("x")}


class JsonLogger(Logger):
    """Appends what it is told to a file."""

    def __init__(self, folder: Path, name: str, first_step: int) -> None:
        super().__init__()
        self.file, self._name = folder / "own.jsonl", name
        self.write({"name": name, "first_step": first_step})

    def write(self, content: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(content) + "\n")

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.write({"step": step, **metrics})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.write({"seed": params["seed"]})


class FrozenEmbedding(L.Callback):
    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.model.tok_emb.weight.requires_grad_(False)


def not_a_callback(names: Sequence[str] = ()) -> Sequence[str]:
    return names
