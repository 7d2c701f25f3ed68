"""From stored pixels to what networks see, and back: standardisation per channel, and ZCA."""

from dataclasses import dataclass

import torch

from ptm_ray.core.types import Float, Tensor


@dataclass(frozen=True)
class Zca:
    """Whitening of whole images: less their `average`, (pixels,), by a symmetric `matrix`, (pixels, pixels), and back.

    Source: Krizhevsky 2009 (Learning multiple layers of features from tiny images), appendix A.
    """

    average: Tensor
    matrix: Tensor
    inverse: Tensor | None = None

    @property
    def stored(self) -> Float[Tensor, "rows pixels"]:
        """As a set's files hold it, (1 + pixels, pixels): the average, and below it the matrix."""
        return torch.cat([self.average[None], self.matrix])

    def forward(self, flat: Float[Tensor, "n pixels"]) -> Float[Tensor, "n pixels"]:
        """Standardised images, whitened."""
        return (flat - self.average) @ self.matrix

    def backward(self, flat: Float[Tensor, "n pixels"]) -> Float[Tensor, "n pixels"]:
        """Whitened images as they were. Only of a whitening that was fitted: a stored one has no inverse."""
        assert self.inverse is not None
        return flat @ self.inverse + self.average


@dataclass(frozen=True)
class Whitening:
    """An affine, invertible map of images: (images/255 − mean) / std per channel, then ZCA if asked for.

    `mean`, `std`: (channels,).
    """

    mean: Tensor
    std: Tensor
    zca: Zca | None = None

    def forward(self, images: Tensor) -> Float[Tensor, "n channels height width"]:
        """(n, height, width, channels) uint8, or floats 0–255, to normalised (n, channels, height, width)."""
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        x = (x - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return x.contiguous() if self.zca is None else self.zca.forward(x.flatten(1)).view_as(x)

    @property
    def bounds(self) -> Float[Tensor, "2 channels 1 1"] | None:
        """Black and white as networks see them; None under ZCA, which mixes pixels."""
        if self.zca is not None:
            return None
        ends = torch.stack([-self.mean / self.std, (1 - self.mean) / self.std])
        return ends.view(2, -1, 1, 1)

    def backward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n height width channels"]:
        """Normalised images as pixels 0–255 (float, unclipped)."""
        x = images if self.zca is None else self.zca.backward(images.flatten(1)).view_as(images)
        return ((x * self.std.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)) * 255).permute(0, 2, 3, 1)


def fit(images: Tensor, *, zca: bool = False, epsilon: float = 0.1) -> Whitening:
    """Statistics of training images, (n, height, width, channels) uint8.

    A channel without variation keeps the scale 1. `epsilon` is added to the spectrum for ZCA (MTT's 0.1), which also
    keeps it invertible where there are fewer images than pixels.
    """
    x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    plain = Whitening(mean, torch.where(std > 1e-6, std, torch.ones_like(std)))
    if not zca:
        return plain
    flat = plain.forward(images).flatten(1).double()
    average = flat.mean(0)
    flat -= average
    spectrum, basis = torch.linalg.eigh(flat.T @ flat / len(flat))
    root = (spectrum.clamp_min(0) + epsilon).sqrt()
    matrix, inverse = (basis / root) @ basis.T, (basis * root) @ basis.T
    return Whitening(plain.mean, plain.std, Zca(average.float(), matrix.float(), inverse.float()))
