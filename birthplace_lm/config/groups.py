"""The configuration groups: the folder `conf/` and the options of each group."""

from functools import cache
from pathlib import Path

PATH_KEYS = ("runs_root", "run_dir", "resume", "init_from", "extend_from", "data.root", "data.replace")
# These need no quotes of Hydra on the command line.
TEXT_KEYS = (*PATH_KEYS, "data.corpus", "data.train", "data.dev", "data.test", "data.question")


def conf_dir() -> Path:
    """The folder of train.yaml: package data in an installed wheel, the repository's conf/ in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


@cache
def options() -> dict[str, list[str]]:
    """The options of every group of train.yaml's defaults list, for example of `attention`."""
    files = sorted(conf_dir().glob("*/*.yaml"))
    return {file.parent.name: [f.stem for f in files if f.parent == file.parent] for file in files}
