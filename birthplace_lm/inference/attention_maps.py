"""The attention weights of a text."""

import torch
from torch import Tensor

from birthplace_lm.data.vocab import MASK, CharVocab
from birthplace_lm.inference.decoding import question_prompt, text_ids
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.sdpa import record_attention_weights


@torch.no_grad()
def attention_weights(model: GPT, vocab: CharVocab, text: str) -> tuple[str, list[Tensor] | None]:
    """The attention weights of every head for a text, or for its end if it is longer than the block.

    Returns:
        The text that the model reads, and for each layer the weights (heads, T, S) of T queries and S keys,
        or None if the attention variant does not provide them. T and S are the number of characters, but
        for variants that compress them.

    Raises:
        InputError: the text has no character that the model knows.
    """
    ids = text_ids(model, vocab, text)
    with record_attention_weights(model) as recorded:
        model(torch.tensor([ids], device=model.tok_emb.weight.device))
    weights = [layer[0] for layer in recorded] if len(recorded) == model.n_layer else None
    return vocab.decode(ids), weights


def answered_text(model: GPT, vocab: CharVocab, question: str, answer: str) -> str:
    """The text that the model has read and written when it answers a question, with its MASKs."""
    text = f"{vocab.decode(question_prompt(model, vocab, question))}{answer}{MASK}"
    return text[: model.block_size]  # an answer that fills the block was cut before its MASK
