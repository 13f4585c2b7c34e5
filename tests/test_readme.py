"""What the README shows has to work as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_of_the_map_is_there_and_in_it() -> None:
    table = README[README.index("## Where things are") :]
    named = set(re.findall(r"[\w.]+\.py", table))
    there = {p.name for p in (ROOT / "birthplace_lm").rglob("*.py") if p.parent.name != "attention"}
    assert there - named == {"__init__.py"}
    assert named <= there | {"train.py"}


def test_a_stranger_adds_a_variant(people: Path, tmp_path: Path) -> None:
    """One Python file and one yaml, as the README has them; a sweep on two processes; the report."""
    place = tmp_path / "clone"
    for name in ("birthplace_lm", "conf", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "MeanAttention" in b]
    (yaml,) = [b for b in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "MeanAttention" in b]
    (place / "birthplace_lm" / "models" / "attention" / "mean.py").write_text(code)
    (place / "conf" / "attention" / "mean.yaml").write_text(yaml)

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    contract = "tests/models/test_attention_contract.py"
    assert " passed" in python("-m", "pytest", contract, "-k", "mean", "-p", "no:cacheprovider")
    python(
        "train.py", "-m", "attention=vanilla,mean", "trainer=ddp", "trainer.accelerator=cpu", "model=tiny",
        f"data.root={people}", "stages.pretrain.max_epochs=2", "stages.finetune.max_epochs=1",
    )  # fmt: skip
    command = "from birthplace_lm.cli.commands import app; app(['report', 'runs', '--format', 'csv'])"
    head, *rows = python("-c", command).splitlines()
    assert head.startswith("attention,")
    assert sorted(row.split(",")[0] for row in rows) == ["mean", "vanilla"]
    assert all(",done," in row for row in rows)
