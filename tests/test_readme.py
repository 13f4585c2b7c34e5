"""What the README shows has to work as it stands there."""

import re
from pathlib import Path

import torch

from birthplace_lm.models.cache import LayerCache

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_attention_variant_is_causal_and_decodes() -> None:
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "MeanAttention" in block
    ]
    scope: dict[str, type] = {}
    exec(code, scope)
    torch.manual_seed(0)
    layer = scope["MeanAttention"](n_embd=8, n_head=2, block_size=6, dropout=0.0)
    x = torch.randn(2, 6, 8)
    whole = layer(x)
    changed = x.clone()
    changed[:, 3] += 1
    assert torch.equal(layer(changed)[:, :3], whole[:, :3])
    assert not torch.allclose(layer(changed)[:, 3:], whole[:, 3:])
    cache = LayerCache(6)
    for t in range(6):
        cache.positions = torch.full((2, 1), t)
        cache.mask = (torch.arange(6) <= t).expand(2, 1, 1, 6)
        torch.testing.assert_close(layer(x[:, t : t + 1], cache), whole[:, t : t + 1])


def test_the_yaml_of_the_variant_begins_with_its_package() -> None:
    (block,) = [b for b in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "MeanAttention" in b]
    assert block.startswith("# @package model\n")  # behind any other comment Hydra does not see it


def test_every_file_of_the_map_is_there_and_in_it() -> None:
    root = Path(__file__).parents[1]
    table = README[README.index("## Where things are") :]
    named = set(re.findall(r"[\w.]+\.py", table))
    there = {p.name for p in (root / "birthplace_lm").rglob("*.py") if p.parent.name != "attention"}
    assert there - named == {"__init__.py"}
    assert named <= there | {"train.py"}
