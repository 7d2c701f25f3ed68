"""Makes torchmetrics importable beside a torchvision that was built for another torch.

torchmetrics imports torchvision where it is installed (medmnist brings it), and a torchvision whose compiled operators
don't load (a CUDA build beside a CPU torch, as on machines without a GPU) fails on import for one reason: it registers
a fake for an operator that nobody defined. No operator of it is used here, so that one is declared.
"""

import torch

_declared: list[torch.library.Library] = []


def guard() -> None:
    """Call before importing torchmetrics; does nothing where torchvision is whole or absent."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define(  # type: ignore[no-untyped-call]
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
        _declared.append(library)
