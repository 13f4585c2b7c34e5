"""The attention weights of a question and its answer, as a picture or a page."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from birthplace_lm.analysis.html_page import escape, write_html
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.attention_maps import answered_text, attention_weights
from birthplace_lm.inference.attention_pictures import attention_pictures
from birthplace_lm.inference.decoding import Answer
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.runs.atomic_files import atomic_replace

CSS = "img { max-width: 100%; height: auto; background: #fff; margin: 1rem 0; border: 1px solid var(--line) }"


def write_attention(model: TrainedModel, name: str, out: Path) -> Answer:
    """Ask about a person and write a picture of every layer: below each other, or as an HTML page.

    Raises:
        InputError: the attention of the model has no weights to draw.
        CheckpointError: the file cannot be written.
    """
    question = model.question.about_typed(name)
    (answer,) = model.answer_questions([question])
    text = answered_text(model.model, model.vocab, question, answer.text)
    read, weights = attention_weights(model.model, model.vocab, text)
    if weights is None:
        raise InputError("the attention of this model does not provide its weights; see docs/attention.md")
    pictures = attention_pictures(model.model, read, weights)
    if out.suffix == ".html":
        images = "".join(
            f'<img alt="layer {layer}" src="{_data_uri(picture)}">'
            for layer, picture in enumerate(pictures, start=1)
        )
        write_html(out, f"{question} {answer.text}", f"<p>{escape(_ABOUT)}</p>{images}", CSS)
    else:
        width = max(picture.shape[1] for picture in pictures)
        padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
        try:
            with atomic_replace(out, _png(np.concatenate(padded))):
                pass
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from error
    return answer


_ABOUT = (
    "A row is the character that looks, a column the character that it looks at. The rows with an orange mark"
    " predict the answer. | stands for MASK. Digits number latent vectors."
)


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def _data_uri(picture: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}"
