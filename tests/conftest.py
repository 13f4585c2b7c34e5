"""A tiny corpus and a quick configuration, so that whole runs take a second or two."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked child hangs if its parent has a pool of threads

import pytest
from hypothesis import settings
from omegaconf import DictConfig
from stage import composed

from birthplace_lm.cli import session
from birthplace_lm.data.corpora.synthetic import write_biographies
from birthplace_lm.runs import signals

Configure = Callable[..., DictConfig]
Amount = Callable[[Any, Any], Any]
Record = Callable[[str, str], None]

for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:  # in the background of a shell, and below nohup
        signal.signal(_number, _handler)

settings.register_profile("suite", deadline=None)  # a machine that is busy is slow, not wrong
settings.load_profile("suite")

_records: list[tuple[str, str]] = []  # what the reliability tests counted


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="the amounts of docs/reliability.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test with the mark `torture` tries what its neighbours try, once more in another way."""
    if not config.getoption("--torture"):
        for item in items:
            if "torture" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="with --torture only"))


def pytest_sessionfinish(session: Any) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:  # one of several processes
        output["records"] = _records


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _records.extend(getattr(node, "workeroutput", {}).get("records", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _records:
        terminalreporter.section("reliability")
        for what, result in _records:
            terminalreporter.line(f"{what}: {result}")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """precision=auto writes what it measures there, in the processes of the tests too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Amount:
    """How often to try: the first number in the suite, the second with --torture."""
    return lambda suite, torture: torture if request.config.getoption("--torture") else suite


@pytest.fixture(scope="session")
def record() -> Record:
    """Say in the closing summary what was tried and how it ended."""
    return lambda what, result: _records.append((what, result))


@pytest.fixture(autouse=True)
def _own_session() -> Iterator[None]:
    """A job that ran in this process leaves no error behind for the exit code of the next test."""
    session.current.cache_clear()
    yield
    session.current.cache_clear()


@pytest.fixture(autouse=True)
def signal_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that runs the program in this process leaves no handlers, and no recorded signal, behind."""
    for name in ("_received", "_process", "_second_ctrl_c"):
        monkeypatch.setattr(signals, name, getattr(signals, name))
    handlers = {number: signal.getsignal(number) for number in signals.HANDLED}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 people: 12 train, 8 dev, 4 test."""
    folder = tmp_path_factory.mktemp("people")
    write_biographies(folder, people=24, seed=0)
    return folder


@pytest.fixture
def tiny(people: Path) -> list[str]:
    """Overrides of a run that takes a moment: 7 steps of pretraining, 6 of finetuning."""
    return [
        "model=tiny",
        "model.n_layer=1",
        f"data.root={people}",
        "stages.pretrain.max_epochs=2",
        "stages.pretrain.batch_size=10",
        "stages.finetune.max_epochs=2",
        "stages.finetune.batch_size=5",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
    ]


@pytest.fixture
def configure(tiny: list[str], tmp_path: Path) -> Configure:
    """Compose such a configuration, its runs in `tmp_path / "runs"`."""

    def compose(*overrides: str) -> DictConfig:
        return composed(tmp_path / "runs", (*tiny, *overrides))

    return compose
