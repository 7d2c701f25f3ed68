"""From stored pixels to what networks see, and back: standardisation per channel, and ZCA."""

from dataclasses import dataclass

import torch

from ptm_ray.core.types import Float, Tensor


@dataclass(frozen=True)
class Whitening:
    """An affine, invertible map of images: (images/255 − mean) / std per channel, then optionally a matrix.

    `mean`, `std`: (channels,). `matrix`, `inverse`: (pixels, pixels) over whole images, symmetric, for ZCA.
    """

    mean: Tensor
    std: Tensor
    matrix: Tensor | None = None
    inverse: Tensor | None = None

    def forward(self, images: Tensor) -> Float[Tensor, "n channels height width"]:
        """(n, height, width, channels) uint8, or floats 0–255, to normalised (n, channels, height, width)."""
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        x = (x - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return x.contiguous() if self.matrix is None else (x.flatten(1) @ self.matrix).view_as(x)

    @property
    def bounds(self) -> Float[Tensor, "2 channels 1 1"] | None:
        """Black and white as networks see them; None under ZCA, which mixes pixels."""
        if self.matrix is not None:
            return None
        ends = torch.stack([-self.mean / self.std, (1 - self.mean) / self.std])
        return ends.view(2, -1, 1, 1)

    def backward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n height width channels"]:
        """Normalised images as pixels 0–255 (float, unclipped)."""
        x = images if self.inverse is None else (images.flatten(1) @ self.inverse).view_as(images)
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
    covariance = flat.T @ flat / len(flat)
    spectrum, basis = torch.linalg.eigh(covariance)
    root = (spectrum.clamp_min(0) + epsilon).sqrt()
    matrix, inverse = (basis / root) @ basis.T, (basis * root) @ basis.T
    return Whitening(plain.mean, plain.std, matrix.float(), inverse.float())
