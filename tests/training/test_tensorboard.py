"""The real TensorBoard in a real browser: every tab shows what a run has left."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import run

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1500,1200",
)  # fmt: skip
SHOWN = """
const seen = {text: "", pictures: 0};
const walk = node => node.childNodes.forEach(child => {
  if (child.nodeType === Node.TEXT_NODE) seen.text += child.textContent + " ";
  if (child.nodeType !== Node.ELEMENT_NODE || ["STYLE", "SCRIPT"].includes(child.tagName)) return;
  if (child.tagName === "IMG" && child.naturalWidth > 100) seen.pictures += 1;
  walk(child.shadowRoot || child);
  if (child.shadowRoot) walk(child);
});
walk(document.body);
seen.text = seen.text.replace(/\\s+/g, '');
return seen;
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def address(configure: Any, tmp_path: Path) -> Iterator[str]:
    """TensorBoard over a run of the synthesizer."""
    run(configure("pretrain=none", "attention=synthesizer", "trainer.check_val_every_n_epoch=1"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = "from birthplace_lm.cli.commands import main; main()"
    command = [sys.executable, "-c", program, "tensorboard", str(tmp_path / "runs"), f"--port={port}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait()


def test_every_tab_is_filled(browser: Any, address: str) -> None:
    wait = time.monotonic() + 30
    while time.monotonic() < wait:
        try:
            socket.create_connection(("127.0.0.1", int(address[:-1].rpartition(":")[2]))).close()
            break
        except OSError:
            time.sleep(0.1)
    expected = {
        "?tagFilter=loss#timeseries": (
            "synthesizer,none/finetune",  # the name of the run
            "finetune/loss",
            "by_characters/loss",
            "by_seconds/loss",
        ),
        "#scalars": ("tag:by_characters/loss", "tag:by_seconds/loss", "final"),
        "#images": ("finetune/attention/layer_1",),
        "#text": ("question", "gold", "Wherewas", "log-probability", "finetune/about_val_loss"),
        "#hparams": ("attention", "synthesizer", "final/dev_exact_match"),
    }
    for tab, words in expected.items():
        pictures = 1 if tab == "#images" else 0
        shown: dict[str, Any] = {}
        for second in range(40):
            if second % 8 == 0:  # what TensorBoard has not read by then it does not show by itself
                browser.get("about:blank")
                browser.get(f"{address}{tab}")
            time.sleep(1)
            shown = browser.execute_script(SHOWN)
            if all(word in shown["text"] for word in words) and shown["pictures"] >= pictures:
                break
        missing = [word for word in words if word not in shown["text"]]
        assert not missing, (tab, shown["text"][-2000:])
        assert shown["pictures"] >= pictures, tab
