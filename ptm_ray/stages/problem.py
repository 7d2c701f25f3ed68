"""From settings and images to what the mathematics works on."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ptm_ray.config import DistillConfig
from ptm_ray.config.parts import ExpertSettings
from ptm_ray.core import nets, whitening
from ptm_ray.core.params import Network
from ptm_ray.core.synthetic import require_enough, require_enough_in_all
from ptm_ray.core.trajectory import Vector, snapshot_steps
from ptm_ray.core.types import Float, Int, Tensor
from ptm_ray.data import MedicalDataset
from ptm_ray.errors import ConfigError

#: ZCA's matrix has (pixels · channels)² numbers; at 64 pixels RGB that is 600 MB, above it out of reach.
ZCA_LARGEST = 64


@dataclass(frozen=True)
class Problem:
    """A dataset and the settings that are applied to it; plain values only, so that Ray ships it as it is.

    `device` is where tensors are that it makes, and so all that is computed of them. Whatever is drawn is drawn on the
    CPU: the same seeds give the same draws anywhere.
    """

    dataset: MedicalDataset
    config: DistillConfig
    device: str = "cpu"

    @property
    def experts(self) -> ExpertSettings:
        return self.config.experts

    @property
    def ops(self) -> tuple[str, ...]:
        """DSA's ops for this dataset, with or without the mirror where the settings insist."""
        ops, mirror = self.dataset.augmentation, self.config.mirror
        if mirror is None or mirror == ("flip" in ops):
            return ops
        return ("flip", *ops) if mirror else tuple(op for op in ops if op != "flip")

    def network(self, name: str = "convnet", precision: str = "float32") -> Network:
        """An architecture for these images; `convnet` is the matching network, with its width and depth, and may
        compute convolutions in another precision.
        """
        data = self.dataset
        options: dict[str, Any] = {}
        if name == "convnet":
            options = {**self.config.network.model_dump(exclude_none=True), "precision": precision}
        return nets.build(name, channels=data.channels, resolution=data.resolution, classes=data.num_classes, **options)

    @cached_property
    def whitening(self) -> whitening.Whitening:
        """Statistics of the training images, and of no others."""
        return whitening.fit(torch.tensor(self.dataset.train.images), zca=self.experts.zca)

    def tensors(self, part: str) -> tuple[Float[Tensor, "n channels height width"], Int[Tensor, " n"]]:
        """Normalised images and labels of a split."""
        split = getattr(self.dataset, part)
        images, labels = self.whitening.forward(torch.tensor(split.images)), torch.tensor(split.labels)
        return images.to(self.device), labels.to(self.device)

    def training_set(
        self, images: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> tuple[Float[Tensor, "n channels height width"], Float[Tensor, "n classes"]]:
        """A synthetic set's normalised images and label probabilities."""
        return torch.tensor(images).to(self.device), torch.tensor(labels).to(self.device)

    def parameters(self, vector: Vector) -> Float[Tensor, " params"]:
        """A copy of a trajectory's vector."""
        return torch.from_numpy(vector.copy()).to(self.device)

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(n, height, width, channels) uint8 to (n, channels, height, width) as networks see them."""
        normalised: npt.NDArray[np.float32] = self.whitening.forward(torch.tensor(pixels)).numpy()
        return normalised

    def pixels(self, images: Float[Tensor, "n channels height width"]) -> npt.NDArray[np.uint8]:
        """Normalised images for the eye."""
        pixels: npt.NDArray[np.uint8] = self.whitening.backward(images).round().clamp(0, 255).byte().numpy()
        return pixels

    def expert_identity(self) -> dict[str, Any]:
        """All that makes an expert what it is: names the folder of its trajectories. Their number is not part of it."""
        return {
            "dataset": self.dataset.fingerprint,
            "augmentation": list(self.ops) if self.experts.augment else [],
            "experts": self.experts.model_dump(mode="json", exclude={"count"}),
            "network": self.config.network.model_dump(mode="json"),
        }

    def snapshot_steps(self) -> list[int]:
        """Training steps at which experts are looked at."""
        return snapshot_steps(self.experts.steps, self.experts.snapshots, self.experts.spacing)

    def epochs(self) -> tuple[float, ...]:
        """The same in passes through the training images."""
        size = min(self.experts.batch_size, len(self.dataset.train))
        return tuple(step * size / len(self.dataset.train) for step in self.snapshot_steps())

    def on(self, device: str) -> "Problem":
        """This problem with its tensors on `device`; itself, with what it has cached, where they are there already."""
        return self if device == self.device else replace(self, device=device)

    def check(self) -> "Problem":
        """Itself, if the settings fit these images. Raises `ConfigError` or `NotEnoughImages` before any work."""
        data, config = self.dataset, self.config
        self.network()
        for name in config.evaluation.networks:
            self.network(name)
        if self.experts.zca and data.resolution > ZCA_LARGEST:
            raise ConfigError(
                f"ZCA of {data.resolution}-pixel images is too large (at most {ZCA_LARGEST}); set experts.zca to false"
            )
        if config.images.init == "real-natural":
            require_enough_in_all(len(data.train), config.ipc * data.num_classes)
        elif config.images.init not in ("real-resampled", "noise"):
            counts = np.bincount(data.train.labels, minlength=data.num_classes)
            for name, count in zip(data.class_names, counts, strict=True):
                require_enough(name, int(count), config.ipc)
        return self
