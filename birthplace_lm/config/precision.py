"""Choose the precision of a device. Imports torch only when it is called."""

# Lightning's short names, with the name that the configuration keeps.
ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


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
