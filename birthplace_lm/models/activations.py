"""Named activations of a GPT: read them, or change them while the model computes.

Names are those of TransformerLens without `hook_`, but `embed` includes the positions. L is the number of a
layer, from 0:

    embed                 (B, T, C)    what the first block gets: characters plus positions
    blocks.L.attn_out     (B, T, C)    what the attention adds to the residual stream
    blocks.L.mlp_post     (B, T, 4 C)  the neurons of the MLP, after the GELU (`mlp.hook_post` there)
    blocks.L.mlp_out      (B, T, C)    what the MLP adds to the residual stream
    blocks.L.resid_post   (B, T, C)    the residual stream after the block

`perceiver` has latent vectors instead of characters in its inner blocks, so T is another number there.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from birthplace_lm.errors import InputError
from birthplace_lm.models.gpt import GPT, Block

Change = Callable[[Tensor], Tensor]


def activation_modules(model: GPT) -> dict[str, nn.Module]:
    """The module whose output is the activation of that name."""
    modules: dict[str, nn.Module] = {"embed": model.drop}
    for layer, block in enumerate(model.blocks):
        named = {"resid_post": block}
        if isinstance(block, Block):  # a block of the user's own may have other parts
            named = {"attn_out": block.attn, "mlp_out": block.mlp, **named}
            neurons = [part for part in block.mlp.children() if isinstance(part, nn.GELU)]
            if len(neurons) == 1:
                named["mlp_post"] = neurons[0]
        modules |= {f"blocks.{layer}.{name}": module for name, module in named.items()}
    return modules


@contextmanager
def record_activations(model: GPT, names: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Collect the activations of these names, or of all, as the last forward pass in the block leaves them.

    Raises:
        InputError: there is no activation of such a name.
    """
    recorded: dict[str, Tensor] = {}

    def record(name: str) -> Change:
        def keep(x: Tensor) -> Tensor:
            recorded[name] = x.detach()
            return x

        return keep

    names = activation_modules(model) if names is None else names
    with patch_activations(model, {name: record(name) for name in names}):
        yield recorded


@contextmanager
def patch_activations(model: GPT, changes: Mapping[str, Change]) -> Iterator[None]:
    """Replace each named activation x by `changes[name](x)` in every forward pass in the block.

    The last layer then computes all positions, also where `GPT.forward` is given a `select`.

    Raises:
        InputError: there is no activation of such a name.
        ValueError: in a forward pass, a change returned no tensor, or one of another shape.
    """
    modules = activation_modules(model)
    unknown = [name for name in changes if name not in modules]
    if unknown:
        raise InputError(f"activation {unknown[0]}: unknown; valid: {', '.join(modules)}")
    with ExitStack() as hooks:
        hooks.enter_context(_all_positions(model))
        for name, change in changes.items():
            hooks.enter_context(_hook(modules[name], name, change))
        yield


@contextmanager
def _hook(module: nn.Module, name: str, change: Change) -> Iterator[None]:
    def replace(module: Any, args: Any, output: Tensor) -> Tensor:
        changed = change(output)
        shape = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        if shape != tuple(output.shape):
            was = tuple(output.shape)
            raise ValueError(f"activation {name}: changed from {was} to {shape}; must keep its shape")
        return changed

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _all_positions(model: GPT) -> Iterator[None]:
    """Select the wanted logits after the forward pass, not within the last layer."""
    selects: list[Tensor | None] = []

    def forward(module: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        selects.append(arguments.pop("select", None))
        return (), arguments

    def select(module: Any, args: Any, logits: Tensor) -> Tensor:
        chosen = selects.pop()
        return logits if chosen is None else logits[chosen]

    before = model.register_forward_pre_hook(forward, with_kwargs=True)
    after = model.register_forward_hook(select)
    try:
        yield
    finally:
        before.remove()
        after.remove()
