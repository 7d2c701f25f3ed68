"""Networks as functions of one flat parameter vector.

Trajectories, distances and unrolled gradients live in parameter space, where one vector of length `params` is the
natural currency: it is stored, subtracted and differentiated as it is. A `Network` wraps an ordinary
`torch.nn.Module` as the pure function (theta, images) -> logits.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.func import functional_call

from ptm_ray.core.types import Float, Tensor


class Architecture(Protocol):
    """What a module offers to become a `Network`: features and a linear head on top of them."""

    def features(self, images: Tensor) -> Tensor: ...

    def head(self, features: Tensor) -> Tensor: ...


class _Ends(nn.Module):
    """Gives a module one call for both of its ends, as `functional_call` knows only `forward`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, embed: bool) -> Tensor:
        net = cast(Architecture, self.net)
        features = net.features(images)
        return features if embed else net.head(features)


class Network:
    """An architecture as a function of a flat parameter vector; holds no parameters itself.

    `name` says which one it is, in files and messages. `by_hand` is a `gradient.LossGradient` of this architecture, to
    be made from how a vector is cut, the vector, images, labels and whether to keep what its `along` needs; None where
    autograd has to find it.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self.by_hand: Callable[..., Any] | None = getattr(module, "by_hand", None)
        self._module = _Ends(module).to("meta")
        self._shapes = {key: value.shape for key, value in self._module.named_parameters()}
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]
        self._buffers = dict(self._module.named_buffers())
        self.num_params = sum(self._sizes)
        #: The linear head comes last, and its bias last in it.
        self.num_classes = self._sizes[-1]

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the output for an image depends on state beside the parameters (batch norm)."""
        return bool(self._buffers)

    def unflatten(self, theta: Float[Tensor, " params"]) -> dict[str, Tensor]:
        """The vector as named tensors; views of `theta`, nothing is copied."""
        pieces = torch.split(theta, self._sizes)
        named = zip(self._shapes.items(), pieces, strict=True)
        return {key: piece.view(shape) for (key, shape), piece in named}

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, " params"]:
        """Fresh parameters, drawn as torch's own layers draw theirs (Kaiming uniform, a = sqrt 5)."""
        return torch.cat([draw.reshape(-1) for draw in self._draws(generator)]).to(dtype)

    def _draws(self, generator: torch.Generator) -> Iterator[Tensor]:
        fan_in = 1
        for key, shape in self._shapes.items():
            if len(shape) > 1 and "token" not in key:
                fan_in = math.prod(shape[1:])
                bound = 1 / math.sqrt(fan_in)
                yield torch.empty(shape).uniform_(-bound, bound, generator=generator)
            elif "token" in key:
                yield torch.empty(shape).normal_(0.0, 0.02, generator=generator)
            elif "norm" in key:
                yield torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
            else:
                bound = 1 / math.sqrt(fan_in)
                yield torch.empty(shape).uniform_(-bound, bound, generator=generator)

    def fresh_state(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Running statistics of batch norm at their start; empty for all other networks."""
        ones = ("running_var",)
        return {
            key: torch.full(b.shape, float(key.endswith(ones)), device=device, dtype=b.dtype)
            for key, b in self._buffers.items()
        }

    def logits(
        self,
        theta: Float[Tensor, " params"],
        images: Float[Tensor, "batch channels height width"],
        state: dict[str, Tensor] | None = None,
        train: bool = True,
    ) -> Float[Tensor, "batch classes"]:
        """Class scores. With `state`, batch norm reads it (or, training, updates it in place)."""
        return self._call(theta, images, state, train, embed=False)

    def embed(
        self, theta: Float[Tensor, " params"], images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """The features below the linear head."""
        return self._call(theta, images, None, True, embed=True)

    def _call(self, theta: Tensor, images: Tensor, state: dict[str, Tensor] | None, train: bool, embed: bool) -> Tensor:
        if self._buffers and state is None:
            raise ValueError(f"{self.name} needs the running statistics of its batch norm: pass state=")
        self._module.train(train)
        named = {**self.unflatten(theta), **(state or {})}
        out: Tensor = functional_call(self._module, named, (images, embed), strict=True)
        return out
