"""What a model computes on the way to its answer: the activations of a text, and the logit lens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import InputError
from birthplace_lm.inference.decoding import text_ids
from birthplace_lm.models.activations import record_activations
from birthplace_lm.models.gpt import GPT


@torch.no_grad()
def activations(
    model: GPT, vocab: CharVocab, text: str, names: Sequence[str] | None = None
) -> tuple[str, dict[str, Tensor]]:
    """The text that the model reads, and its activations of these names, or all: (T, channels) each.

    Raises:
        InputError: the text has no character that the model knows, or there is no activation of a name.
    """
    ids = text_ids(model, vocab, text)
    with record_activations(model, names) as recorded:
        model(torch.tensor([ids], device=model.tok_emb.weight.device))
    return vocab.decode(ids), {name: x[0] for name, x in recorded.items()}


@torch.no_grad()
def logit_lens(model: GPT, vocab: CharVocab, text: str) -> tuple[str, Tensor]:
    """What the model would write if it ended after each layer.

    The last LayerNorm and the head are applied to the embedding and to the residual stream after each block.

    Returns:
        The text that the model reads, and log-probabilities (layers + 1, T, V) of the next character. Those
        of the last layer are the model's own.

    Raises:
        InputError: the text has no character that the model knows, or the model is a `perceiver`.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    if any(getattr(block, "latent_queries", False) for block in model.blocks):
        raise InputError("logit lens: the inner blocks of this model have latent vectors, not characters")
    names = ["embed", *(f"blocks.{layer}.resid_post" for layer in range(model.n_layer))]
    read, residual = activations(model, vocab, text, names)
    stream = torch.stack([residual[name] for name in names])
    return read, torch.log_softmax(model.head(model.ln_f(stream)).float(), -1)
