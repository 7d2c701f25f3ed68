"""Makes torchmetrics and medmnist's downloader importable beside a torchvision that was built for another torch.

torchmetrics imports torchvision where it is installed (medmnist brings it). A torchvision whose compiled operators
don't load (a CUDA build beside a CPU torch, as on machines without a GPU) fails on import for one reason: it registers
fakes for operators that nobody defined. None of them is used here, so those it asks for are declared.
"""

import re

import torch

#: More than torchvision has, so that a failure of another kind ends the loop by its own message.
MOST = 32
_declared: list[torch.library.Library] = []


def guard() -> None:
    """Call before importing torchmetrics or downloading; does nothing where torchvision is whole or absent."""
    for _ in range(MOST):
        try:
            import torchvision  # noqa: F401
        except ImportError:
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _declare(missing[1])
        else:
            return


def _declare(operator: str) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{operator}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)
