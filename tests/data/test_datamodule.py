"""What a stage gets: the right rows, the same ones after a resume, and nothing from the global stream."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from locked_source import LOCK, Locked
from torch.utils.data import DataLoader

from birthplace_lm.config.schema import Data
from birthplace_lm.data.batch_datamodule import BatchDataModule, LoaderConfig
from birthplace_lm.data.corpora.corpus import Corpus, embedded_corpus_dir, read_corpus
from birthplace_lm.data.datamodule import (
    LanguageModelingDataModule,
    QuestionAnsweringDataModule,
    SpanCorruptionDataModule,
)
from birthplace_lm.data.masking.spans import RandomSpans, SalientSpans
from birthplace_lm.data.sequences import Batch
from birthplace_lm.data.sources import LeftPadded
from birthplace_lm.data.vocab import MASK, PAD
from birthplace_lm.data.workers import check_shared_memory
from birthplace_lm.errors import InputError

BLOCK = 128


def embedded(holdout: int) -> Corpus:
    return read_corpus(Data(None, "corpus.txt", "train.tsv", "dev.tsv", "test.tsv", holdout), BLOCK)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return embedded(holdout=35)


def pretraining(
    corpus: Corpus,
    batch_size: int = 128,
    workers: int = 0,
    seed: int = 0,
    questions: float = 0.5,
    spans: Any = RandomSpans,
    shifts: int | None = 20,
    masks: int = 1,
) -> SpanCorruptionDataModule:
    loading = LoaderConfig(batch_size, workers, seed, shuffle=True, length_bucket=4)
    return SpanCorruptionDataModule(
        corpus,
        loading,
        BLOCK,
        spans,
        closing_mask=True,
        loss_on="all",
        masks_per_row=masks,
        question_fraction=questions,
        min_shift=None if shifts is None else 0,
        max_shift=shifts,
    )


def finetuning(corpus: Corpus, ascii_only: bool = False) -> QuestionAnsweringDataModule:
    return QuestionAnsweringDataModule(
        corpus, LoaderConfig(32, 0, 0, shuffle=True, length_bucket=4), BLOCK, ascii_only
    )


def in_process(data: BatchDataModule, rank: int = 0, world_size: int = 1) -> BatchDataModule:
    data.trainer = SimpleNamespace(  # type: ignore
        training=True, global_rank=rank, world_size=world_size, limit_train_batches=1.0
    )
    return data


def train(data: BatchDataModule, steps: int) -> list[Batch]:
    """What Lightning does with a data module, up to a number of steps."""
    in_process(data)
    loader = data.train_dataloader()
    made: list[Batch] = []
    while len(made) < steps:
        for batch in loader:
            made.append(data.on_before_batch_transfer(batch, 0))
            if len(made) == steps:
                break
    return made


def same(one: Iterable[Batch], two: Iterable[Batch]) -> bool:
    return all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))  # type: ignore[literal-required]
        for a, b in zip(one, two, strict=True)
        for key in (*a, *b)
    )


def rows(corpus: Corpus, batches: Iterable[Batch]) -> list[str]:
    """The characters of every row; a shorter one shows its last character among the inputs, too."""
    texts = []
    for batch in batches:
        for x, y in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
            targets = corpus.vocab.decode(y).rstrip(PAD)
            texts.append((corpus.vocab.decode(x)[: len(targets)] + targets[-1]).lstrip(PAD))
    return texts


def questions_of(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Questions and places of the rows that are `question MASK place MASK`."""
    return [
        (q, p) for q, p, *_ in (t.split(MASK) for t in texts) if q.startswith("Where was ") and q[-1] == "?"
    ]


def epoch_of(data: BatchDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def reworded(folder: Path, wording: str) -> Corpus:
    """The embedded corpus with questions of another wording."""
    for file in embedded_corpus_dir().iterdir():
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"^Where was (.*) born\?", lambda m: wording.replace("{name}", m[1]), text, flags=re.M)
        (folder / file.name).write_text(text, encoding="utf-8")
    return read_corpus(
        Data(str(folder), "corpus.txt", "train.tsv", "dev.tsv", "test.tsv", question=wording), BLOCK
    )


@pytest.mark.parametrize(
    "wording", ["Where was {name} born?", "Which town is {name} from?", "{name}: where?"]
)
def test_names_have_the_same_positions_in_documents_and_questions(tmp_path: Path, wording: str) -> None:
    """Bug: documents were shifted by ten characters whatever the wording, and 6 of 140 answers were right."""
    corpus = reworded(tmp_path, wording)
    spans = partial(SalientSpans, answer_probability=1.0, sharpness=1.0, context_exponent=1e6)
    data = pretraining(corpus, spans=spans, shifts=None)
    files = [corpus.train, corpus.dev, *([corpus.test] if corpus.test else [])]
    people = [corpus.question.name_in(row.question) or "" for file in files for row in file.rows]
    names = "|".join(map(re.escape, people))
    prefix = wording.index("{name}")
    documents, questions = 0, 0
    for batch in data.train_dataloader():
        for ids in batch["inputs"].tolist():
            text = corpus.vocab.decode(ids)
            assert re.match(names, text[prefix:]), text
            documents += re.match(rf"(?:{names})\. {MASK}", text[prefix:]) is not None
            questions += text.startswith(wording[:prefix]) and wording[prefix + 6 :] + MASK in text
    assert (documents, questions) == (420, 105)


def test_a_document_can_be_shifted_by_64_characters(tmp_path: Path) -> None:
    wording = "a" * 65 + "{name}?"
    corpus = reworded(tmp_path, wording)
    with pytest.raises(
        InputError, match=rf"^data.question={re.escape(wording)}: has 65 characters before the name"
    ):
        pretraining(corpus, shifts=None)
    pretraining(corpus, shifts=0)


def test_the_answers_are_likely_whatever_the_wording(tmp_path: Path) -> None:
    """Bug: a name was recognised in one wording only, so no line of a train person was labelled."""
    spans = mock.Mock(side_effect=RandomSpans)
    pretraining(embedded(0), spans=spans)
    pretraining(reworded(tmp_path, "Which town is {name} from?"), spans=spans)
    default, other = spans.call_args_list
    assert default == other


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_data_module_goes_on_with_the_next_batch(corpus: Corpus, workers: int) -> None:
    length = len(epoch_of(pretraining(corpus)))
    steps = 2 * length + 2
    whole = train(pretraining(corpus), steps)
    keys = [batch["batch_id"] for batch in whole]
    assert keys == [(i // length, i % length) for i in range(steps)]
    for k in [1, length - 1, length, length + 1] if workers == 0 else [length - 2]:
        before, after = pretraining(corpus, workers=workers), pretraining(corpus, workers=workers)
        first = train(before, k)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert same([*first, *train(after, steps - k)], whole)


class Seen(L.LightningModule):
    """Trains on nothing and remembers the keys of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys: list[tuple[int, int]] = []
        self.validated = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.keys.append(batch["batch_id"])
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: BatchDataModule, **flags: Any) -> Seen:
    module = Seen()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **flags)
    trainer.fit(module, datamodule=data)
    return module


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_every_batch_once(corpus: Corpus) -> None:
    """Sanity checks and validation in between do not move the position."""
    data = pretraining(corpus, batch_size=256)
    length = len(epoch_of(data))
    module = fit(data, max_steps=length + 1, val_check_interval=1)
    assert module.keys == [*((0, i) for i in range(length)), (1, 0)]
    assert module.validated > length
    state = data.state_dict()
    assert state == {"epoch": 1, "index": 1, "next_batch": data.train_batches.fingerprint((1, 1))}
    again = fit(data, max_epochs=1, limit_val_batches=0)
    assert again.keys == module.keys[:length], "another fit begins at the first batch"
    fresh = pretraining(corpus, batch_size=256)
    assert fresh.state_dict() == {
        "epoch": 0,
        "index": 0,
        "next_batch": data.train_batches.fingerprint((0, 0)),
    }


def test_the_same_epoch_repeats_its_batches(corpus: Corpus) -> None:
    loading = LoaderConfig(32, 0, 0, shuffle=True, length_bucket=4, same_epoch=True)
    data = QuestionAnsweringDataModule(corpus, loading, BLOCK, ascii_only=False)
    length = len(epoch_of(data))
    batches = train(data, 2 * length)
    for first, second in zip(batches[:length], batches[length:], strict=True):
        assert torch.equal(first["inputs"], second["inputs"])
        assert second["batch_id"] == (1, first["batch_id"][1])


def test_the_global_stream_is_left_alone(corpus: Corpus) -> None:
    """Bug: the loader of the questions drew from it at every validation."""
    before = torch.get_rng_state()
    for data in (pretraining(corpus), finetuning(corpus)):
        list(data.train_dataloader())
        for loader in data.val_dataloader():
            list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_and_workers_do_not(corpus: Corpus) -> None:
    one = epoch_of(pretraining(corpus))
    assert same(epoch_of(pretraining(corpus, workers=2)), one)
    assert not torch.equal(epoch_of(pretraining(corpus, seed=1))[0]["inputs"], one[0]["inputs"])


def test_processes_together_make_the_batches_of_one(corpus: Corpus) -> None:
    shares = [
        epoch_of(in_process(pretraining(corpus, batch_size=96), rank, world_size=3)) for rank in range(3)
    ]
    single = epoch_of(pretraining(corpus, batch_size=96))
    for whole, *shared in zip(single, *shares, strict=True):
        assert sorted(rows(corpus, shared)) == sorted(rows(corpus, [whole]))
        assert all(len(share["inputs"]) == 32 for share in shared) or len(whole["inputs"]) < 96
    asked_by = [list(in_process(pretraining(corpus), r, 3).val_dataloader()[1]) for r in range(3)]
    questions = [row for batches in asked_by for batch in batches for row in batch]
    assert sorted(questions) == sorted((row.question, row.place) for row in corpus.holdout)


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_validation_is_the_same_every_time(corpus: Corpus, make: Any) -> None:
    data = make(corpus)
    losses, questions = data.val_dataloader()
    wanted = list(losses)
    assert [batch["batch_id"] for batch in wanted] == [(0, i) for i in range(len(wanted))]
    assert 1 <= len(wanted) <= 4
    train(data, 3)
    assert same(data.val_dataloader()[0], wanted)
    assert same(make(corpus).val_dataloader()[0], wanted)
    assert [row for batch in questions for row in batch] == [(r.question, r.place) for r in corpus.holdout]


def test_a_sampler_gets_the_names_that_the_questions_ask_about(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("Henry V. Born in Monmouth. He died .\nAda Bo. Born in Ur .\n")
    (tmp_path / "train.tsv").write_text("Where was Ada Bo born?\tUr\n")
    (tmp_path / "dev.tsv").write_text("Where was Henry V born?\tMonmouth\n")
    given: dict[str, Any] = {}

    def spans(**arguments: Any) -> RandomSpans:
        given.update(arguments)
        return RandomSpans(**arguments)

    pretraining(read_corpus(Data(str(tmp_path), "corpus.txt", "train.tsv", "dev.tsv"), BLOCK), spans=spans)
    assert given["titles"] == ["Henry V. ", "Ada Bo. "]
    assert (given["people"], given["places"]) == (["Ada Bo"], ["Ur"])


def test_shared_memory_is_checked(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: a run ended with "Please call iter(combined_loader) first"; large batches passed the check."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=32 << 10))
    monkeypatch.setattr("os.path.isdir", lambda path: path == "/dev/shm")
    key = "stages.pretrain.num_workers"
    check_shared_memory(key, 0, processes=1, batch_bytes=1000)
    with pytest.raises(InputError, match=rf"^{key}=2: needs 2048 kB .* /dev/shm has 32 kB; .* {key}=0$"):
        check_shared_memory(key, 2, processes=1, batch_bytes=1000)
    with pytest.raises(InputError, match="needs 12288 kB"):  # two batches of each of six workers
        check_shared_memory(key, 2, processes=3, batch_bytes=1 << 20)


def test_workers_of_several_processes_inherit_no_locks(corpus: Corpus) -> None:
    """Bug: a worker that was forked beside the threads of gloo waited forever, and all processes with it."""

    def second_epoch(data: BatchDataModule) -> DataLoader[Any]:
        in_process(data, rank=1, world_size=2)
        loader = data.train_dataloader()
        data.cursor.epoch = 1  # which the loader has not planned yet
        return loader

    data = pretraining(corpus, workers=1)
    (source, *others) = data.train_sources
    assert isinstance(source, LeftPadded)
    locked = Locked(source.source, source.min_shift, source.max_shift, BLOCK)
    data.train_sources = [locked, *others]
    loader = second_epoch(data)
    loader.timeout = 60
    with LOCK:
        batch = next(iter(loader))
    wanted = next(iter(second_epoch(pretraining(corpus))))
    assert same([batch], [wanted])


KILLED_WITH_WORKERS = """
def main():
    import os, signal, sys
    from birthplace_lm.data.batch_datamodule import LoaderConfig
    from birthplace_lm.data.datamodule import QuestionAnsweringDataModule
    from birthplace_lm.data.corpora.corpus import read_corpus
    from birthplace_lm.config.schema import Data

    corpus = read_corpus(Data(None, "corpus.txt", "train.tsv", "dev.tsv", "test.tsv", 0), 128)
    data = QuestionAnsweringDataModule(corpus, LoaderConfig(32, 1, 0, True, 4), 128, False)
    loader = data.train_dataloader()
    loader.multiprocessing_context = sys.argv[1]
    batches = iter(loader)
    count = sum(1 for _ in batches)
    print(count, *(worker.pid for worker in batches._workers), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_live_as_long_as_their_process(tmp_path: Path, method: str) -> None:
    """Bug: under forkserver a worker took the server for its parent, and ended at once."""
    script = tmp_path / "script.py"
    script.write_text(KILLED_WITH_WORKERS)
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    batches, worker = map(int, done.stdout.split())
    assert batches == 7
    until = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_validation_never_shows_a_row_of_training(corpus: Corpus) -> None:
    """The documents are the same, their spans are not, whatever the seed; and nothing is asked."""
    held_out = rows(corpus, pretraining(corpus).val_dataloader()[0])
    assert 3 * 128 < len(set(held_out)) <= 4 * 128
    trained = [set(rows(corpus, epoch_of(pretraining(corpus, seed=seed)))) for seed in (0, 1)]
    assert all(len(seen & set(held_out)) < 10 for seen in trained)  # short ones may agree by chance
    assert questions_of(held_out) == []


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("exponent", [0.0, 30.0])
def test_all_lines_are_shifted_however_much_of_them_is_shown(
    corpus: Corpus, exponent: float, masks: int
) -> None:
    """Bug: a line that filled the block was not shifted: its name stood elsewhere than in questions."""
    spans = partial(SalientSpans, answer_probability=0.5, sharpness=1.0, context_exponent=exponent)
    for shifts in (None, 20):
        data = pretraining(corpus, questions=0.0, spans=spans, shifts=shifts, masks=masks)
        pads = []
        for batch in data.train_dataloader():
            characters = (batch["inputs"] != corpus.vocab.pad_id).float()
            pads.append(characters.argmax(1))
        shift = torch.cat(pads)
        if shifts is None:
            assert shift.unique().tolist() == [len("Where was ")]
        else:
            expected = len(shift) / (shifts + 1)
            counts = shift.bincount(minlength=shifts + 1)
            assert ((counts - expected) ** 2 / expected).sum() < 45.3  # chi-squared, 20 of freedom: p = 0.001


def test_validation_has_names_where_training_has_them(corpus: Corpus) -> None:
    """Bug: its lines were not shifted, so the loss rose while the model learned."""
    loading = LoaderConfig(128, 0, 0, shuffle=True, length_bucket=4)
    modeling = LanguageModelingDataModule(corpus, loading, BLOCK, 0.0, None, None)
    for data in (pretraining(corpus, questions=0.0, shifts=None), modeling):
        for batches in (data.train_dataloader(), data.val_dataloader()[0]):
            read = torch.cat(
                [(batch["inputs"] != corpus.vocab.pad_id).float().argmax(1) for batch in batches]
            )
            assert read.unique().tolist() == [len("Where was ")]


def test_lines_that_language_modeling_cuts_are_counted(corpus: Corpus) -> None:
    loading = LoaderConfig(128, 0, 0, shuffle=True, length_bucket=4)
    room = BLOCK - len("Where was ")
    (warning,) = LanguageModelingDataModule(corpus, loading, BLOCK, 0.0, None, None).warnings
    longer = sum(len(line) > room for line in corpus.documents.training_lines)
    assert warning.startswith(f"{longer} of {len(corpus.documents.lines)} lines are longer than the {room} ")
    assert LanguageModelingDataModule(corpus, loading, 1024, 0.0, None, None).warnings == ()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_questions_are_mixed_in(corpus: Corpus, share: float) -> None:
    data = pretraining(
        corpus,
        questions=share,
        spans=partial(SalientSpans, answer_probability=0.85, sharpness=1.0, context_exponent=6.0),
    )
    train_questions = {(row.question, row.place) for row in corpus.train.rows}
    count = round(share * len(corpus.train.rows))
    assert data.train_rows == len(corpus.documents.lines) + count
    drawn = []
    for _ in range(2):
        texts = rows(corpus, train(data, len(data.train_dataloader())))
        assert len(texts) == data.train_rows
        drawn.append(set(questions_of(texts)))
        assert len(questions_of(texts)) == len(drawn[-1]) == count
        assert drawn[-1] <= train_questions
    assert (drawn[0] == drawn[1]) == (share in (0.0, 1.0))  # else drawn anew


@pytest.mark.parametrize("share", [-0.1, 1.01, 2.0, float("nan")])
def test_share_of_questions_out_of_range(corpus: Corpus, share: float) -> None:
    """Bug: with more than all questions, an epoch ended in an IndexError."""
    with pytest.raises(ValueError, match=rf"^question_fraction={share}: must be from 0 to 1"):
        pretraining(corpus, questions=share)


def test_held_out_questions_are_validated_on_and_never_trained_on(corpus: Corpus) -> None:
    held_out = {(row.question, row.place) for row in corpus.holdout}
    data = finetuning(corpus)
    texts = questions_of(rows(corpus, epoch_of(data)))
    assert sorted(texts) == sorted((row.question, row.place) for row in corpus.train.rows)
    assert data.train_rows == len(texts) == 175
    assert set(questions_of(rows(corpus, data.val_dataloader()[0]))) == held_out
    assert not held_out & set(texts)


def test_without_a_holdout_dev_is_validated_on() -> None:
    corpus = embedded(holdout=0)
    dev = [(row.question, row.place) for row in corpus.dev.rows]
    losses, questions = finetuning(corpus).val_dataloader()
    assert [row for batch in questions for row in batch] == dev
    validated = questions_of(rows(corpus, losses))
    assert 3 * 32 < len(validated) == len(set(validated)) <= 4 * 32
    assert set(validated) < set(dev)


def test_ascii_only_is_for_training_questions(corpus: Corpus) -> None:
    def naive(text: str) -> str:
        return "".join(c for c in text if ord(c) < 128)

    plain, ascii_only = finetuning(corpus), finetuning(corpus, ascii_only=True)
    questions = [(row.question, row.place) for row in corpus.train.rows]
    assert sum(not question.isascii() for question, _ in questions) > 5
    assert sorted(questions_of(rows(corpus, epoch_of(plain)))) == sorted(questions)
    assert sorted(questions_of(rows(corpus, epoch_of(ascii_only)))) == sorted(
        (naive(q), p or "") for q, p in questions
    )
    assert any(not row.question.isascii() for row in corpus.holdout)
    for one, two in zip(plain.val_dataloader(), ascii_only.val_dataloader(), strict=True):
        assert str(list(one)) == str(list(two))
    held_out = {(row.question, row.place) for row in corpus.holdout}
    assert set(questions_of(rows(corpus, ascii_only.val_dataloader()[0]))) == held_out
