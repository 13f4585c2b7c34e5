"""Spread the jobs of a sweep that run side by side over the GPUs of this host."""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

GPUS = Path("/proc/driver/nvidia/gpus")  # one folder per GPU


def claim_gpu() -> IO[str] | None:
    """Restrict this process to the GPU that the fewest other jobs use, through `CUDA_VISIBLE_DEVICES`.

    Call it before CUDA reads that variable.

    Returns:
        The locked file; the claim lasts until it is closed. None with fewer than two GPUs.
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = variable.split(",") if variable is not None else [str(i) for i, _ in enumerate(GPUS.glob("*"))]
    if len(visible) < 2:
        return None
    folder = Path(tempfile.gettempdir()) / f"birthplace_lm-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for slot in range(1000):
        for gpu in visible:
            file = (folder / f"{gpu}-{slot}".replace("/", "-")).open("a")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return file
    return None
