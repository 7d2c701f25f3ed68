"""`cellphantom`, the embedded default: stained blood cells, drawn from a seed.

A stand-in that needs no download and no licence: eight classes that differ as white cells do (shape and number of
nuclear lobes, granules, cytoplasm), under variation that hides the difference (size, place, stain, neighbours, blur,
noise). It tests a pipeline and teaches the commands; it says nothing about any disease.

Colour is made as a microscope sees it: stains absorb light, so densities add and the image is exp(−density).
"""

import logging
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ptm_ray.core.seeds import Seeds
from ptm_ray.data.dataset import MedicalDataset, Split
from ptm_ray.errors import StoreError
from ptm_ray.store import atomic
from ptm_ray.store.places import cache

log = logging.getLogger(__name__)

Field = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

SIZE = 32
OVERSAMPLING = 2
CLASSES = (
    "lymphocyte",
    "monocyte",
    "eosinophil",
    "neutrophil",
    "basophil",
    "erythroblast",
    "platelet",
    "red cell",
)
#: Absorption of the stains in red, green and blue.
PURPLE = np.array([0.95, 1.25, 0.35])
PINK = np.array([0.15, 0.75, 0.45])
ORANGE = np.array([0.10, 0.70, 0.95])
BLUE = np.array([0.75, 0.55, 0.15])


#: Of pixels, from −1 to 1.
_SIDE = (np.arange(SIZE * OVERSAMPLING) + 0.5) / (SIZE * OVERSAMPLING) * 2 - 1
_Y, _X = np.meshgrid(_SIDE, _SIDE, indexing="ij")


class Canvas:
    """Coordinates of one image in [−1, 1], and the density of stain laid on it so far."""

    y, x = _Y, _X

    def __init__(self, draw: np.random.Generator) -> None:
        self.density = np.zeros((*self.x.shape, 3))
        self.draw = draw

    def _near(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """The pixels within reach of a place, and a few more: a shape touches no others."""
        half = SIZE * OVERSAMPLING / 2
        rows, columns = (
            slice(max(0, int((at - reach + 1) * half) - 3), max(0, int((at + reach + 1) * half) + 4)) for at in (y, x)
        )
        return rows, columns

    def blob(self, x: float, y: float, radius: float, squeeze: float = 1.0, wobble: float = 0.06) -> Field:
        """How much of each pixel (0 to 1) an irregular, squeezed disc covers."""
        angle = self.draw.uniform(0, np.pi)
        waves = [(k, self.draw.normal(0, wobble / k), self.draw.uniform(0, 2 * np.pi)) for k in (2, 3, 5)]
        cover = np.zeros_like(self.x)
        # As far as the waves and the squeeze can bring its edge.
        reach = radius * (1 + sum(abs(depth) for _, depth, _ in waves)) * np.sqrt(max(squeeze, 1 / squeeze))
        near = self._near(x, y, min(reach, radius * 1.6))
        u = (self.x[near] - x) * np.cos(angle) + (self.y[near] - y) * np.sin(angle)
        v = -(self.x[near] - x) * np.sin(angle) + (self.y[near] - y) * np.cos(angle)
        u, v = u * np.sqrt(squeeze), v / np.sqrt(squeeze)
        around = np.arctan2(v, u)
        edge = sum(depth * np.cos(k * around + phase) for k, depth, phase in waves)
        cover[near] = np.clip((radius * (1 + edge) - np.hypot(u, v)) * 14 + 0.5, 0, 1)
        return cover

    def stain(self, cover: Field, colour: Field, amount: float) -> None:
        """Lays stain on: densities add."""
        rows = np.flatnonzero(cover.any(axis=1))
        if len(rows):
            covered = slice(rows[0], rows[-1] + 1)
            self.density[covered] += cover[covered, :, None] * colour * amount

    def granules(self, within: Field, count: int, radius: float, colour: Field, amount: float) -> None:
        """Small grains at random places of a covered region."""
        places = np.argwhere(within > 0.5)
        if not len(places):
            return
        for row, column in places[self.draw.integers(len(places), size=count)]:
            near = self._near(self.x[row, column], self.y[row, column], radius)
            distance = np.hypot(self.x[near] - self.x[row, column], self.y[near] - self.y[row, column])
            grain = np.clip((radius * self.draw.uniform(0.7, 1.3) - distance) * 14 + 0.5, 0, 1)
            self.density[near] += grain[..., None] * colour * amount


def _lobes(canvas: Canvas, x: float, y: float, size: float, count: int) -> Field:
    """`count` round lobes along a bent chain, joined where they touch."""
    turn, bend = canvas.draw.uniform(0, 2 * np.pi), canvas.draw.uniform(0.5, 1.2)
    radius = size * (0.62 if count == 2 else 0.48)
    cover = np.zeros_like(canvas.x)
    for k in range(count):
        along = turn + (k - (count - 1) / 2) * bend * 2 * np.pi / (count + 1)
        reach = size * canvas.draw.uniform(0.55, 0.75)
        lobe = canvas.blob(x + reach * np.cos(along), y + reach * np.sin(along), radius * canvas.draw.uniform(0.8, 1.1))
        cover = np.maximum(cover, lobe)
    return cover


def _lymphocyte(c: Canvas, x: float, y: float, r: float) -> None:
    c.stain(c.blob(x, y, r * 0.95), BLUE, 0.45)
    shift = c.draw.normal(0, 0.05, 2)
    c.stain(c.blob(x + shift[0], y + shift[1], r * c.draw.uniform(0.66, 0.85)), PURPLE, 1.0)


def _monocyte(c: Canvas, x: float, y: float, r: float) -> None:
    c.stain(c.blob(x, y, r * 1.15, wobble=0.1), BLUE, 0.4)
    turn = c.draw.uniform(0, 2 * np.pi)
    kidney = c.blob(x, y, r * 0.8, squeeze=c.draw.uniform(1.1, 1.4))
    notch = c.blob(x + 0.62 * r * np.cos(turn), y + 0.62 * r * np.sin(turn), r * c.draw.uniform(0.3, 0.5))
    c.stain(kidney * (1 - notch), PURPLE, 0.8)


def _eosinophil(c: Canvas, x: float, y: float, r: float) -> None:
    body = c.blob(x, y, r)
    c.stain(body, PINK, 0.3)
    c.granules(body, 26, 0.07, ORANGE, 0.5)
    c.stain(_lobes(c, x, y, r * 0.7, 2), PURPLE, 0.9)


def _neutrophil(c: Canvas, x: float, y: float, r: float) -> None:
    body = c.blob(x, y, r)
    c.stain(body, PINK, 0.4)
    c.granules(body, 14, 0.05, PINK, 0.4)
    c.stain(_lobes(c, x, y, r * 0.7, int(c.draw.integers(3, 6))), PURPLE, 0.9)


def _basophil(c: Canvas, x: float, y: float, r: float) -> None:
    body = c.blob(x, y, r * 0.95)
    c.stain(body, PINK, 0.35)
    c.stain(_lobes(c, x, y, r * 0.65, int(c.draw.integers(2, 4))), PURPLE, 0.6)
    c.granules(body, 22, 0.075, PURPLE, 0.6)


def _erythroblast(c: Canvas, x: float, y: float, r: float) -> None:
    c.stain(c.blob(x, y, r * 0.9), PINK, c.draw.uniform(0.4, 0.7))
    c.stain(c.blob(x, y, r * 0.9), BLUE, c.draw.uniform(0.0, 0.4))
    shift = c.draw.normal(0, 0.07, 2)
    c.stain(c.blob(x + shift[0], y + shift[1], r * c.draw.uniform(0.42, 0.6), wobble=0.02), PURPLE, 1.3)


def _platelet(c: Canvas, x: float, y: float, r: float) -> None:
    body = np.zeros_like(c.x)
    for _ in range(int(c.draw.integers(1, 4))):
        at = c.draw.normal(0, 0.22, 2)
        body = np.maximum(body, c.blob(x + at[0], y + at[1], r * c.draw.uniform(0.25, 0.5), wobble=0.2))
    c.stain(body, PURPLE, 0.45)
    c.granules(body, 8, 0.05, PURPLE, 0.4)


def _red_cell(c: Canvas, x: float, y: float, r: float) -> None:
    c.stain(c.blob(x, y, r * 0.85, squeeze=c.draw.uniform(1, 1.35)), PINK, 0.9)
    c.stain(c.blob(x, y, r * 0.4), PINK, -0.45)


PAINTERS: tuple[Callable[[Canvas, float, float, float], None], ...] = (
    _lymphocyte,
    _monocyte,
    _eosinophil,
    _neutrophil,
    _basophil,
    _erythroblast,
    _platelet,
    _red_cell,
)


def _lens(sigma: float) -> Field:
    """(SIZE, SIZE · OVERSAMPLING): a Gaussian blur along one axis, edges repeated, and the step down to pixels."""
    fine = SIZE * OVERSAMPLING
    reach = np.arange(-4, 5)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    lens = np.zeros((SIZE, fine))
    for row in range(fine):
        for k, weight in zip(range(-4, 5), kernel / kernel.sum(), strict=True):
            lens[row // OVERSAMPLING, min(fine - 1, max(0, row + k))] += weight / OVERSAMPLING
    return lens


#: Blurs from sharp to out of focus.
LENSES = tuple(_lens(sigma) for sigma in np.linspace(0.5, 2.2, 8))


def paint(label: int, draw: np.random.Generator) -> Pixels:
    """One image of a class, (32, 32, 3) uint8."""
    canvas = Canvas(draw)
    for _ in range(int(draw.integers(0, 4))):  # neighbours at the border: red cells, as in every smear
        angle = draw.uniform(0, 2 * np.pi)
        reach = draw.uniform(0.95, 1.3)
        _red_cell(canvas, reach * np.cos(angle), reach * np.sin(angle), draw.uniform(0.4, 0.6))
    x, y = draw.normal(0, 0.14, 2)
    PAINTERS[label](canvas, x, y, draw.uniform(0.42, 0.72))
    stain = draw.lognormal(0, 0.25) * draw.normal(1, 0.12, 3).clip(0.5, 1.5)
    light = 255 * draw.uniform(0.8, 1.0) * draw.normal(1, 0.04, 3)
    image = light * np.exp(-(canvas.density.clip(0) + draw.uniform(0, 0.12)) * stain)
    lens = LENSES[draw.integers(len(LENSES))]
    image = lens @ image.transpose(2, 0, 1) @ lens.T
    image = image.transpose(1, 2, 0)
    image += draw.normal(0, draw.uniform(2, 12), image.shape)
    pixels: Pixels = np.rint(image).clip(0, 255).astype(np.uint8)
    return pixels


#: Images per class of each split.
PARTS = {"train": 100, "val": 20, "test": 50}


def cellphantom() -> MedicalDataset:
    """800 training, 160 validation and 400 test images; the same on every machine.

    Drawing them takes seconds, so they are kept in the user's cache, and drawn again where what lies there can't be
    read or is another version's.
    """
    kept = cache() / f"cellphantom-{sha256(Path(__file__).read_bytes()).hexdigest()[:12]}.npz"
    images = _found(kept)
    if images is None:
        images = {part: draw(part, per_class) for part, per_class in PARTS.items()}
        _keep(kept, images)
    train, val, test = (Split(images[part], np.arange(len(images[part])) % len(CLASSES)) for part in PARTS)
    return MedicalDataset(
        name="cellphantom",
        train=train,
        val=val,
        test=test,
        class_names=CLASSES,
        task="multi-class",
        licence="drawn by ptm-ray, free of rights",
        source="ptm_ray.data.phantom",
    )


def draw(part: str, per_class: int) -> Pixels:
    """A split's images, its classes in turn."""
    seeds = Seeds(0)
    return np.stack(
        [
            paint(index % len(CLASSES), np.random.default_rng(seeds.derive(f"cellphantom {part}", index)))
            for index in range(per_class * len(CLASSES))
        ]
    )


def _found(kept: Path) -> dict[str, Pixels] | None:
    try:
        with np.load(kept, allow_pickle=False) as file:
            return {part: file[part] for part in PARTS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(kept: Path, images: dict[str, Pixels]) -> None:
    try:
        with atomic.replacing(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, **images)  # type: ignore[arg-type]
    except StoreError as error:
        log.info("cellphantom will be drawn again by the next run: %s", error)
