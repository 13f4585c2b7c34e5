"""Data files and overrides that nobody would write: an error in one line, or exactly what they say."""

import hashlib
import importlib
import random
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import compose, parse_saved, to_exported, to_saved
from birthplace_lm.config.groups import options
from birthplace_lm.data.batch_datamodule import LoaderConfig
from birthplace_lm.data.corpora import text_file
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.data.corpora.qa_files import NORMALISED, Questions
from birthplace_lm.data.datamodule import QuestionAnsweringDataModule, SpanCorruptionDataModule
from birthplace_lm.data.masking.spans import SalientSpans
from birthplace_lm.data.vocab import MASK, PAD
from birthplace_lm.errors import InputError
from birthplace_lm.runs.identity import hashed_config, pretraining_directory, run_directory

SECONDS = 2.0  # the longest that an error may take to show, of the processor
BLOCK_SIZE = 128
FILES = ("corpus.txt", "train.tsv", "dev.tsv", "test.tsv")

FORMAT = "\u00ad\u061c\u180e\u200e\u200f" + "".join(
    map(chr, [*range(0x202A, 0x202F), *range(0x2061, 0x206A)])
)
Row = tuple[str, str | None, int]


class Timed(NamedTuple):
    """What a call gave, or the line of its error, and how long it took."""

    result: Any
    message: str | None
    seconds: float


def timed(call: Callable[[], object], what: object) -> Timed:
    begin = time.process_time()
    result, message = None, None
    try:
        result = call()
    except InputError as error:
        message = str(error)
        assert message, what
        assert message.isprintable(), (what, message)
    except BaseException as error:
        error.add_note(f"of {what!r}")
        raise
    seconds = time.process_time() - begin
    assert seconds < SECONDS, (what, seconds)
    return Timed(result, message, seconds)


# ---------------------------------------------------------------------------------------------------- data


class Fault(Exception):
    """Why the simple reader refuses: a file, and its line where one is to blame."""


class Simple(NamedTuple):
    """What the simple reader makes of the four files."""

    documents: list[str]
    train: list[Row]
    dev: list[Row]
    test: list[Row]


def simple_lines(path: Path) -> Iterator[tuple[int, str]]:
    lines = re.split(rb"\r\n|\r|\n", path.read_bytes())
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise Fault(path.name, number) from error
        control = any((byte < 32 and byte not in b"\t\v\f") or byte == 127 for byte in line)
        if control or len(line) > 100_000:
            raise Fault(path.name, number)
        yield number, text


def simple_text(text: str, invisible: str, place: tuple[str, int]) -> str:
    for character in invisible:
        text = text.replace(character, "")
    marks = "".join("m" if unicodedata.combining(character) else "." for character in text)
    text = unicodedata.normalize("NFC", text).strip()
    if "m" * 31 in marks or re.search(f"[{PAD}{MASK}\ufffd\x80-\x84\x86-\x9f]", text):
        raise Fault(*place)
    return text


def one_space(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def simple_field(text: str, place: tuple[str, int]) -> str:
    text = simple_text(text, "\u200b\u2060\ufeff" + FORMAT, place)
    if text[:1] == '"' and text.count('"') % 2:
        raise Fault(*place)
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', ""):
        text = text[1:-1].replace('""', '"')
    return one_space(simple_text(text, "", place))


def simple_documents(path: Path) -> list[str]:
    lines = [simple_text(text, "\u200b\u2060\ufeff", (path.name, n)) for n, text in simple_lines(path)]
    documents = [text for text in lines if len(one_space(re.sub(f"[{FORMAT}]", "", text))) >= 4]
    if not documents:
        raise Fault(path.name, None)
    return documents


def simple_questions(path: Path, answered: bool) -> list[Row]:
    rows: list[Row] = []
    for number, line in simple_lines(path):
        place = (path.name, number)
        fields = [simple_field(field, place) for field in line.split("\t")]
        header = {field.lower() for field in fields} <= {"question", "place", "answer"} and not rows
        if fields == [""] or header:
            continue
        if "" in fields or len(fields) > 2 or (answered and len(fields) == 1):
            raise Fault(*place)
        rows.append((fields[0], fields[1] if len(fields) == 2 else None, number))
    if not rows:
        raise Fault(path.name, None)
    return rows


WORDING = "Where was born?"  # of every question; its characters are in the vocabulary too


def simple_reader(folder: Path) -> Simple:
    """The rules of the table of bad input once more, as short as they can be said."""
    corpus, train, dev, test = (folder / name for name in FILES)
    read = Simple(
        simple_documents(corpus),
        simple_questions(train, answered=True),
        simple_questions(dev, answered=True),
        simple_questions(test, answered=False),
    )
    corpus_symbols = {"\n", *WORDING, *"".join(read.documents)}
    wording = re.compile(r"Where was .+ born\?", re.DOTALL)
    for path, rows in ((train, read.train), (dev, read.dev), (test, read.test)):
        for question, place, number in rows:
            text = question + (place or "")
            if len(text) + 2 > BLOCK_SIZE or (path != test and not corpus_symbols.issuperset(text)):
                raise Fault(path.name, number)
    for path, rows in ((train, read.train), (dev, read.dev), (test, read.test)):
        for question, _, number in rows:
            if not wording.fullmatch(question):
                raise Fault(path.name, number)
    return read


def rows_of(questions: Questions | None) -> list[Row]:
    assert questions is not None
    return [(row.question, row.place, row.line) for row in questions.rows]


def check_same(result: Corpus, expected: Simple, folder: Path) -> None:
    documents = result.documents
    assert documents.lines == expected.documents
    assert documents.text == "".join(text + "\n" for text in expected.documents)
    assert rows_of(result.train) == expected.train
    assert rows_of(result.dev) == expected.dev
    assert rows_of(result.test) == expected.test
    assert result.vocab.symbols == (PAD, MASK, *sorted({*documents.text, *WORDING}))
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]
    assert list(result.sha256.values()) == hashes


def check_tidy(result: Corpus, folder: Path, data: DictConfig) -> None:
    """Reading is a projection: what was read, written down and read again, is the same and tidy."""
    folder.mkdir(exist_ok=True)
    (folder / FILES[0]).write_text(result.documents.text, encoding="utf-8", newline="\n")
    for name, rows in zip(FILES[1:], map(rows_of, (result.train, result.dev, result.test)), strict=True):
        lines = [question if place is None else f"{question}\t{place}" for question, place, _ in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    again = read_corpus(OmegaConf.merge(data, {"root": str(folder)}), BLOCK_SIZE)
    assert again.documents.text == result.documents.text
    for one, other in ((again.train, result.train), (again.dev, result.dev), (again.test, result.test)):
        assert [row[:2] for row in rows_of(one)] == [row[:2] for row in rows_of(other)]
    kept = ("repeated with the same answer", NORMALISED)  # the text keeps what training reads otherwise
    assert all(any(what in note for what in kept) for note in again.notes[1:])


def check_trainable(corpus: Corpus) -> None:
    """Every row of both stages fits the block; those of finetuning say what the file says."""
    loading = LoaderConfig(batch_size=5, num_workers=0, seed=0, shuffle=True, length_bucket=2)
    spans = partial(SalientSpans, answer_probability=0.5, sharpness=1.0, context_exponent=1.0)
    pretrain = SpanCorruptionDataModule(
        corpus,
        loading,
        BLOCK_SIZE,
        spans,
        closing_mask=True,
        loss_on="span",
        masks_per_row=1,
        question_fraction=0.5,
        min_shift=0,
        max_shift=12,
    )
    finetune = QuestionAnsweringDataModule(corpus, loading, BLOCK_SIZE, ascii_only=False)
    generator = torch.Generator().manual_seed(0)
    for source in (*pretrain.train_sources, *finetune.train_sources, *finetune.validation_sources):
        totals = source.rows(generator).totals
        assert 3 < totals.min() <= totals.max() <= BLOCK_SIZE
    ids, over = finetune.train_sources[0].rows(generator).characters(finetune.ids)
    texts = [corpus.vocab.decode(row[~end].tolist()) for row, end in zip(ids, over, strict=True)]
    assert texts == [f"{question}{MASK}{place}{MASK}" for question, place, _ in rows_of(corpus.train)]


SIGNS = (  # each alone does something to a line, a word or its form
    "\t\r\n\v\f\0\x1b\x7f\x1c \u00a0\u3000\u0085\u2028\u200b\u2060\u00ad\u200e\u200f\u200d\u202e"
    "\u00e9\u0301\u212b\ufb01\u0344\u0958\ufffd\ufffe\U0010ffff"
)
TEXTS = [
    *(*SIGNS, PAD, MASK, "\r\n", "\n\n", "\n \n", "\t\t", "A\t\n", "\tRome\n", "Where was A born?\tRome\n"),
    *("e\u0301", "\u0323\u0307", "\u1100\u1161", "\u0301" * 30, "\u0301" * 31),
    *("a" * 99_999, "\n" + "a" * 100_000 + "\n", "a" * 100_001, "\u00e9" * 60_000),
]
BYTES = [  # none of it UTF-8
    *(b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(b"\xff\xfe", b"\x89PNG\r\n", b"\x1f\x8b\x08"),
]
SNIPPETS = [*(text.encode() for text in TEXTS), *BYTES]
ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7", "utf-8-sig", "cp037"]


def insert(content: bytes, new: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + new + content[at:]


def insert_snippet(content: bytes, rng: random.Random) -> bytes:
    return insert(content, rng.choice(SNIPPETS), rng)


def insert_bytes(content: bytes, rng: random.Random) -> bytes:
    return insert(content, rng.randbytes(rng.randint(1, 5)), rng)


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3) if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_out(content: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + content[at + rng.choice([1, 1, 2, 5, 50]) :]


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice([0, 1, 2, 3, rng.randint(0, len(content)), len(content) - 1])]


def repeat(content: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(content))
    return content[:at] + content[at : at + rng.choice([1, 2, 50])] * rng.choice([2, 3, 40]) + content[at:]


def change_lines(content: bytes, rng: random.Random) -> bytes:
    """A line removed, doubled, moved, blanked, padded with spaces or cut at its tab."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    with_spaces = b" \xc2\xa0" + line.replace(b"\t", b" \t  ") + b"  "
    lines[at : at + 1] = rng.choice(
        [
            *([], [line, line], [b"", line], [b" ", line], [with_spaces], [line + b"\r"], [line[:3]]),
            *([line.split(b"\t")[0]], [line.split(b"\t")[0] + b"\t"], [b"\t" + line.split(b"\t")[-1]]),
            *([b" \t "], [rng.choice(lines), line], [line + b"\t"], [line + rng.choice(lines)]),
        ]
    )
    return b"\n".join(lines)


def change_ends(content: bytes, rng: random.Random) -> bytes:
    ends = rng.choice([[b"\r\n"], [b"\r"], [b"\n\n"], [b"\n", b"\r\n", b"\r", b"\r\r\n", b"\n\r"]])
    return b"".join(line + rng.choice(ends) for line in content.split(b"\n"))[: rng.choice([None, -1])]


def change_encoding(content: bytes, rng: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")


def change_form(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    return unicodedata.normalize(rng.choice(["NFD", "NFKD", "NFC"]), text).encode("utf-8", "surrogateescape")


def sprinkle(content: bytes, rng: random.Random) -> bytes:
    """The same sign at many places, between characters."""
    sign = rng.choice('\u200b\u200e\u00ad\ufeff\u0301 \u00a0\u3000\u2009\r\n\u202e\x92\ufffd"e')
    pieces = content.decode("utf-8", "surrogateescape")
    mixed = "".join(c + sign * (rng.random() < 0.02) for c in pieces)
    return mixed.encode("utf-8", "surrogateescape")


def export_as_csv(content: bytes, rng: random.Random) -> bytes:
    """Fields in quotes, some of them wrongly, and a header."""
    quoted = b"\n".join(
        b"\t".join(b'"' + f.replace(b'"', b'""') + b'"' * (rng.random() < 0.999) for f in line.split(b"\t"))
        for line in content.split(b"\n")
    )
    return rng.choice([b"", b"question\tplace\n", b'"Question"\t"Answer"\n', b"Question\n"]) + quoted


def stretch(content: bytes, rng: random.Random) -> bytes:
    """A line of a length about which a block is too short."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    letters = len(lines[at].decode("utf-8", "replace"))
    lines[at] += b"a" * (BLOCK_SIZE - 2 + rng.randint(-2, 3) - letters)
    return b"\n".join(lines)


MUTATIONS = [
    *(insert_snippet, insert_snippet, insert_bytes, flip_bits, cut_out, truncate, repeat),
    *(
        change_lines,
        change_lines,
        change_ends,
        change_encoding,
        change_form,
        sprinkle,
        stretch,
        export_as_csv,
    ),
]


def test_mutants_of_data_files(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: Any, record: Any
) -> None:
    folder = tmp_path / "mutants"
    folder.mkdir()
    originals = {name: (people / name).read_bytes() for name in FILES}
    data = OmegaConf.merge(compose().data, {"root": str(folder)})
    for name, content in originals.items():
        (folder / name).write_bytes(content)
    counts: Counter[str] = Counter()
    longest, mutants = 0.0, amount(150, 10_000)
    for seed in range(mutants):
        rng = random.Random(seed)
        name = rng.choice(FILES)
        applied = rng.choices(MUTATIONS, k=rng.choice([1, 1, 1, 2, 3]))
        content = originals[name]
        for mutate in applied:
            content = mutate(content, rng)
        (folder / name).write_bytes(content)
        monkeypatch.setattr(
            text_file, "CHUNK_BYTES", 65_536 if len(content) > 50_000 else rng.choice([7, 97, 1000])
        )
        what = (seed, name, [mutate.__name__ for mutate in applied])
        outcome = timed(lambda: read_corpus(data, BLOCK_SIZE), what)
        longest = max(longest, outcome.seconds)
        try:
            expected = simple_reader(folder)
        except Fault as fault:
            blamed, line = fault.args
            place = f"{folder / blamed}:" if line is None else f"{folder / blamed}:{line}:"
            assert place in (outcome.message or ""), (*what, outcome.message, place)
            counts["refused"] += 1
            counts["with its line"] += line is not None
        else:
            assert outcome.message is None, (*what, outcome.message)
            check_same(outcome.result, expected, folder)
            check_tidy(outcome.result, tmp_path / "tidy", data)  # type: ignore[arg-type]
            check_trainable(outcome.result)
            counts["accepted"] += 1
        (folder / name).write_bytes(originals[name])
    assert min(counts["accepted"], counts["refused"]) > mutants / 5, counts
    record(
        f"{mutants} mutants of data files",
        f"{counts['refused']} refused ({counts['with its line']} with the line), {counts['accepted']} read as"
        f" an independent reader does, at most {longest:.2f} s",
    )


# ------------------------------------------------------------------------------------------- configuration


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration, inner ones too, with its value."""
    for name, value in node.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


GROUPS = options()
TARGET_WORDS = """
os.system torch.load subprocess.Popen builtins.eval pickle.loads lightning.Trainer birthplace_lm null 3 ???
'' [] birthplace_lm.runs.atomic_files.os.system birthplace_lm.runs.atomic_files.atomic_write_text
birthplace_lm.data.corpora.synthetic.write_biographies birthplace_lm.data.sequences.Batch
birthplace_lm.models.attention.synthesizer.SynthesizerAttention birthplace_lm.training.optimizers.adamw
birthplace_lm.training.lr_schedules.cosine
"""
TARGETS = TARGET_WORDS.split()
GOOD: dict[str, list[str]] = {
    "model.n_layer": ["1", "3", "'2'", "int(2.0)"],
    "model.n_head": ["1", "2", "8", "${model.n_layer}"],
    "model.n_embd": ["64", "48", "7"],
    "model.dropout": ["0", "0.99", "1e-3"],
    "seed": ["0", "1", "2147483647", "1_000"],
    "stages.pretrain.learning_rate": ["1", "1e-12", "6e-3"],
    "stages.finetune.batch_size": ["1", "1000000"],
    "stages.finetune.schedule.warmup_fraction": ["0", "1", "0.5"],
    "stages.pretrain.dataset.spans.answer_probability": ["0", "0.3", "1"],
    "optimizer.weight_decay": ["0", "0.5", "1e-300"],
    "optimizer.betas": ["[0.9,0.99]", "[0,0]"],
    "trainer.max_steps": ["-1", "5"],
    "trainer.gradient_clip_val": ["null", "0", "2.5"],
    "trainer.devices": ["auto", "2", "[0,1]", "-1"],
    "trainer.precision": ["16-mixed", "bf16-true"],
    "checkpoint.keep_last": ["2", "10"],
    "runs_root": ["/tmp/a b", "'a=b,c'", "é", "${oc.env:HOME}/x", "a/../b", "'~/x'", "${hydra:runtime.cwd}"],
    "run_dir": ["null", "x", "'1e3'", "'null'", "'2020-01-01'", "${runs_root}/one"],
    "data.root": ["/nowhere", "${oc.env:HOME}", "${oc.env:NOT_THERE,x}", "'~/data'"],
    "labels.attention": ["mine", "3", "a_b-c"],
}
BAD_WORDS = r"""
nan inf -inf -1 0 1.5 1e400 -1e400 1e-3 -0.0 +1 0x10 1:30 2020-01-01 many true null yes None ~ '' [] {}
[1,2] [[]] {a:1} {1:2,a:3} {true:1} [{1:2}] ??? '???' '${' ${ } a,b a=b "' . .. / \ '\\' % # @ &a *a <<
../../x /etc/passwd '~nobody_has_this/x' './~nobody_has_this' '!!python/object:os.system' spawn ddp_notebook
int(x) int(inf) str([1]) choice(1,2) range(1,3) glob(*) float(nan) sort(2,1) tag(a,1) extend_list(1)
json_str({a:1}) shuffle(1) bool(2) interval(0,1) cast(3) https://example.org/x
"""
BAD = [
    *BAD_WORDS.split(),
    *("", "a b", "'a b'", "'a\0b'", "'a\nb'", "'\x1b[31m'", "'\u2028'", "'\u0085'", "'\u202e'"),
    *("'\udcff'", "'\ud800'", "x" * 5000, f"'{'x' * 300}'"),
    *("1" + "0" * zeros for zeros in (30, 400, 5000)),
    *("[" * 50, "[" * 100 + "]" * 100, "{a:" * 100 + "1" + "}" * 100, "int(" * 60),
    *(f"{{_target_:{target}}}" for target in TARGETS),
    *(f"[{{_target_:{target},_partial_:true}}]" for target in TARGETS),
]
INTERPOLATION_WORDS = r"""
${model} ${seed} ${nope} ${.x} ${..seed} ${...} ${model.n_layer} ${stages.finetune} '\${seed}' '\${nope}'
a${seed}b ${seed}${nope} ${${seed}} ${oc.env:HOME} ${oc.env:NOT_THERE} ${oc.env:NOT_THERE,null}
${oc.env:NOT_THERE,'${seed}'} ${oc.env:} ${oc.env:TRICKY} ${oc.env:${seed}} '${oc.decode:${oc.env:TRICKY}}'
${oc.decode:'{a'} ${oc.decode:'[1,2]'} ${oc.decode:null} ${oc.decode:nan} ${oc.decode:'{1:2,a:3}'}
${oc.decode:'${oc.env:HOME}'} ${oc.decode:'\${seed}'} ${oc.create:{a:1}} ${oc.create:'{_target_:os.system}'}
${oc.select:nope} ${oc.select:seed,3} ${oc.dict.keys:model} ${oc.dict.values:model} ${oc.dict.keys:seed}
${oc.deprecated:nope} ${oc.x:1} ${hydra:} ${hydra:job.name} ${hydra:job.id} ${hydra:runtime}
${hydra:runtime.cwd} ${hydra:nope.x} ${hydra:runtime.choices} ${hydra:runtime.choices.nope}
${python:os.system} ${eval:'1+1'} ${now:%Y}
"""
INTERPOLATIONS = [*INTERPOLATION_WORDS.split(), "${" * 40 + "}" * 40]
OTHER_WORDS = """
= == + ++ ~ += seed --help -m / @ é=1 ~seed ~seed=3 ~zzz ~optimizer ~model ~stages.finetune ~attention
~attention=zzz ~optimizer.betas ~optimizer._partial_ hydra=null hydra.x=1 hydra.mode=x hydra.run.dir=/x
hydra.run=3 hydra/launcher=x hydra/launcher=null hydra.searchpath=3 hydra.searchpath=[x] hydra.job.chdir=x
~hydra hydra.callbacks={a:{_target_:os.system}} +hydra.job.env_set.A=b hydra/sweeper=x hydra.verbose={}
hydra.version=x hydra.overrides=3 defaults=[] +seed=1 ++seed=1 +model={n_layer:1} schema=x +schema=x
attention@model=vanilla attention@x.y=vanilla +experiment=cs224n_2021 experiment=[cs224n_2021]
attention=[vanilla,synthesizer] attention=vanilla,synthesizer attention=[{a:1}] attention={a:1}
attention=/vanilla attention=vanilla.yaml attention=../attention/vanilla attention=vanilla/ data=. data=..
optimizer.betas.0=1 optimizer.betas.x=1 optimizer.betas.9=1 optimizer.betas[0]=1 seed.x=1 ++seed.x.y=1
+model._target_=os.system +_target_=os.system +trainer.plugins=[{_target_:os.system}] +trainer.callbacks=[x]
+optimizer._args_=[1] +optimizer._convert_=all +optimizer._recursive_=false
"""
OTHERS = [*OTHER_WORDS.split(), "", "a b=1", "\0=1", "\udcff=1", "x\ny=1"]  # no KEY=VALUE with a key of ours


def misspelt(key: str, rng: random.Random) -> str:
    at = rng.randrange(len(key))
    wrong = rng.choice(["", ".", "x", "_", "é", "-", "/", ":", "[", "$", " ", key[at] * 2])
    return key[:at] + wrong + key[at + 1 :]


def random_override(keys: list[str], rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.40:
        key = rng.choice([*GOOD])
        return f"{key}={rng.choice(GOOD[key])}"
    if draw < 0.48:
        group = rng.choice([*GROUPS])
        return f"{group}={rng.choice(GROUPS[group])}"
    if draw < 0.52:
        return f"{rng.choice([*GROUPS])}={rng.choice([*BAD, *INTERPOLATIONS, 'vanila', 'tiny'])}"
    if draw < 0.58:
        return rng.choice(OTHERS)
    called = [key for key in keys if key.endswith(("_target_", "_partial_"))]
    key = rng.choice(keys + called * 3)
    if draw < 0.64:
        key = misspelt(key, rng)
    if key.endswith("._target_"):
        return f"{key}={rng.choice(TARGETS)}"
    return f"{rng.choice(['', '', '', '+', '++'])}{key}={rng.choice(BAD if draw < 0.88 else INTERPOLATIONS)}"


RANGES = {
    "model.n_layer": (1, 1000),
    "model.n_head": (1, 1000),
    "model.n_embd": (1, 100_000),
    "model.block_size": (8, 1_000_000),
    "model.dropout": (0, 0.999),
    "data.holdout_size": (0, 1_000_000),
    "seed": (0, 2**31 - 1),
    "checkpoint.every_n_steps": (1, 10**9),
    "checkpoint.keep_last": (2, 1000),
    "trainer.accumulate_grad_batches": (1, 1_000_000),
    **{
        f"stages.{stage}.{key}": limits
        for stage in ("pretrain", "finetune")
        for key, limits in {
            "batch_size": (1, 1_000_000),
            "learning_rate": (1e-300, 1),
            "max_epochs": (1, 1_000_000),
            "num_workers": (0, 64),
        }.items()
    },
}


def check_sound(config: DictConfig) -> None:
    """What an accepted configuration promises to whatever is built from it."""
    plain: Any = OmegaConf.to_container(config)
    for key, (low, high) in RANGES.items():
        value = OmegaConf.select(config, key)
        assert type(value) in (int, float), key
        assert low <= value <= high, key
    assert config.trainer.gradient_clip_val is None or config.trainer.gradient_clip_val >= 0
    assert config.model.n_embd % config.model.n_head == 0
    for key, value in flat(plain):
        if key.endswith("_target_"):
            module, _, name = value.rpartition(".")
            if (key, value) != ("trainer._target_", "lightning.Trainer"):
                assert module.startswith("birthplace_lm.")
                assert getattr(importlib.import_module(module), name).__module__ == module
                assert OmegaConf.select(config, key.replace("_target_", "_partial_")) is True
        elif isinstance(value, str):
            assert value
            assert not re.search(r"\$\{|[\0\n\r]", value)
    root = Path(config.runs_root).expanduser()
    assert pretraining_directory(config).parent == root / "pretrained"
    if config.run_dir is None:
        assert run_directory(config).parent == root
        assert len(run_directory(config).name.encode()) < 255
    assert OmegaConf.is_readonly(config)


def check_survives_disk(config: DictConfig) -> None:
    """What config.yaml and the config.json of an export hold is the same configuration of the same run."""
    for text in (to_saved(config), to_exported(config)):
        again = parse_saved(text.encode("utf-8").decode("utf-8"), Path("file"))
        assert again == config
        assert hashed_config(again) == hashed_config(config)
        assert run_directory(again) == run_directory(config)


@pytest.mark.filterwarnings("ignore:.*is deprecated. Change your code", "ignore:provider=hydra.searchpath")
def test_random_overrides(monkeypatch: pytest.MonkeyPatch, amount: Any, record: Any) -> None:
    monkeypatch.setenv("TRICKY", "${oc.env:HOME}")
    monkeypatch.delenv("NOT_THERE", raising=False)
    before = compose()
    keys = [key for key, _ in flat(OmegaConf.to_container(before))]
    counts: Counter[str] = Counter()
    longest, tries = 0.0, amount(30, 2_000)
    for seed in range(tries):
        rng = random.Random(seed)
        overrides = [random_override(keys, rng) for _ in range(rng.choice([1, 1, 2, 3]))]
        outcome = timed(partial(compose, overrides), (seed, overrides))
        longest = max(longest, outcome.seconds)
        counts["accepted" if outcome.message is None else "refused"] += 1
        if outcome.message is None:
            try:
                check_sound(outcome.result)
                check_survives_disk(outcome.result)
            except Exception as error:
                error.add_note(f"of {seed, overrides}")
                raise
    assert compose() == before
    assert min(counts["accepted"], counts["refused"]) > tries / 5, counts
    record(
        f"{tries} random overrides",
        f"{counts['refused']} refused in one line, {counts['accepted']} accepted and sound,"
        f" at most {longest:.2f} s",
    )
