"""How Lightning saves and loads."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from birthplace_lm.runs import checkpoint as files


class VerifiedCheckpointIO(CheckpointIO):
    """Whole checkpoints, verified before they are believed; see `checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        files.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Nothing but data is ever unpickled."""
        return files.load(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        files.remove(Path(path))
