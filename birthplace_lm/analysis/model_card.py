"""Model card (README.md with Hub front matter) for exported models."""

from omegaconf import DictConfig

from birthplace_lm.analysis.report.tables import markdown_cell
from birthplace_lm.runs.metrics import RunMetrics


def model_card(config: DictConfig, parameters: int, metrics: RunMetrics | None, origin: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        metrics: those of the run; None if there are none.
        origin: where the weights come from, a sentence.
    """
    model, labels = config.model, config.labels
    rows = {
        "attention": labels.attention,
        "layers, heads, channels": f"{model.n_layer}, {model.n_head}, {model.n_embd}",
        "longest text": f"{model.block_size} characters",
        "parameters": f"{parameters:,}",
    }
    if metrics is not None:
        rows |= {
            "pretraining": labels.pretrain,
            "data": labels.data,
            "seed": str(config.seed),
            "characters read": f"{metrics.characters:,}",
            "exact match on dev": str(metrics.dev),
            "always the most frequent train answer": str(metrics.baseline),
        }
    question = markdown_cell(config.data.question)
    table = "\n".join(f"| {markdown_cell(name)} | {markdown_cell(value)} |" for name, value in rows.items())
    return f"""---
library_name: birthplace_lm
tags: [character-level, gpt, factual-knowledge]
---

# A GPT that knows people by name

{markdown_cell(origin)} It reads one character at a time and answers the question

> {question}

At best it knows the people of its corpus; about others it invents an answer and sounds as sure.

| | |
| --- | --- |
{table}

`model.safetensors` holds the weights, `config.json` the whole configuration, `vocab.json` the characters.

```bash
birthplace-lm ask . "Full Name"
```

```python
import birthplace_lm

lm = birthplace_lm.load(".")
lm.answer(["Full Name"])
```
"""
