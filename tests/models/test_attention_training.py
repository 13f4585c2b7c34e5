"""Every variant trains in several processes as in one, and goes on from a checkpoint bit for bit."""

import multiprocessing
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import every_attention
import pytest
import torch
from omegaconf import DictConfig
from stage import continued, digest, fit, quick
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint
from birthplace_lm.training.distributed.dtensor import full_tensor
from birthplace_lm.training.distributed.fsdp import shard
from birthplace_lm.training.microbatching import microbatched_loss_sum

NAMES = sorted(path.stem for path in (conf_dir() / "attention").glob("*.yaml"))
SYMBOLS, STEPS, PROCESSES = 30, 2, 2


def overrides_of(name: str) -> list[str]:
    attention, *options = name.split("+")
    return [f"attention={attention}", *(f"model.{option}=true" for option in options)]


class Loss(nn.Module):
    """What DDP wraps: the loss as the LightningModule computes it."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        return microbatched_loss_sum(self.model, batch, pad_id=0)


def trained(config: DictConfig, how: str, rank: int, processes: int) -> list[Tensor]:
    """Loss of every step, then the weights, of training on each process's share of the rows."""
    torch.manual_seed(0)
    model = build_model(config, SYMBOLS)
    rows = torch.randint(2, SYMBOLS, (8, 40))
    rows[:3, :5] = 0  # PADs in front, as in pretraining
    batch = {"inputs": rows[rank::processes, :-1], "targets": rows[rank::processes, 1:]}
    loss_of: nn.Module = Loss(model)
    if how == "fsdp2":
        shard(model, init_device_mesh("cpu", (processes,)))
    elif how == "ddp":
        loss_of = DistributedDataParallel(loss_of)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(batch) / len(rows) * processes  # gradients are averaged
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach() / processes)
    if processes > 1:
        for loss in losses:
            dist.all_reduce(loss)
    return [*losses, *(full_tensor(p.detach()) for p in model.parameters())]


def _process(rank: int, file: str, configs: list[DictConfig], sender: Connection) -> None:
    timeout = timedelta(seconds=30)
    dist.init_process_group("gloo", f"file://{file}", timeout, rank=rank, world_size=PROCESSES)
    for config in configs:
        for how in ("ddp", "fsdp2"):
            sender.send([value.numpy() for value in trained(config, how, rank, PROCESSES)])
    dist.destroy_process_group()


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    names = [*NAMES, "nope+canon+mask_pads"]
    configs = [compose([*overrides_of(name), "model=tiny", "model.n_head=4"]).model for name in names]
    context = multiprocessing.get_context("fork")
    results = []
    processes = []
    for rank in range(PROCESSES):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(rank, str(tmp_path / "store"), configs, sender))
        process.start()
        sender.close()
        processes.append(process)
        results.append(receiver)
    try:
        for name, config in zip(names, configs, strict=True):
            expected = trained(config, "alone", 0, 1)
            assert expected[STEPS - 1] < expected[0], name
            for how in ("ddp", "fsdp2"):
                for receiver in results:
                    assert receiver.poll(60), f"{name} {how}: no answer"
                    got = [torch.from_numpy(value) for value in receiver.recv()]
                    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4, msg=f"{name} {how}")
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.parametrize("trainer", ["cpu", "ddp", "fsdp2"])
def test_resumes_bit_for_bit(trainer: str, people: Path, tmp_path: Path) -> None:
    """All variants, each a layer of one model."""
    often = ["stages.pretrain.max_epochs=1", "checkpoint.every_n_steps=1", "checkpoint.keep_last=100"]
    places = [f"trainer={trainer}", "trainer.accelerator=cpu"]
    config = quick(people, tmp_path, "model.dropout=0.1", *often, *places, *every_attention.OVERRIDES)
    whole = tmp_path / "whole"
    fit(config, "pretrain", whole)
    assert digest(continued(whole, 1, config, tmp_path / "continued")) == digest(whole)
    assert len(checkpoint.list_checkpoints(whole)) > 2
