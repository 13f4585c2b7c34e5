"""What there is to compute on. Imports torch only when it is asked."""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each

_held: list[IO[str]] = []  # locks of this process


def auto_precision(accelerator: str) -> str:
    """`bf16-mixed` where the device multiplies bfloat16 natively, else `32-true`."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu"):
        native = torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def claim_gpu() -> str | None:
    """Keep to one GPU of several, that the fewest other jobs have, until this process ends.

    For jobs of a sweep that run side by side: by `CUDA_VISIBLE_DEVICES`, before CUDA looks at it.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given is not None else [str(i) for i, _ in enumerate(GPUS.glob("*"))]
    if len(visible) < 2:
        return None
    folder = Path(tempfile.gettempdir()) / f"birthplace_lm-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for others in range(1000):
        for gpu in visible:
            file = (folder / f"{gpu}-{others}".replace("/", "-")).open("a")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            _held.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return gpu
    return None
