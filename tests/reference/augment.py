"""DSA's colour ops and holes, one pixel at a time."""

import numpy as np


def brightness(image, strength):
    return image + (strength[0] - 0.5)


def saturation(image, strength):
    out = np.empty_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            pixel = image[:, row, column]
            grey = sum(pixel) / len(pixel)
            out[:, row, column] = (pixel - grey) * (2 * strength[0]) + grey
    return out


def contrast(image, strength):
    mean = sum(image.ravel()) / image.size
    return (image - mean) * (strength[0] + 0.5) + mean


def cutout(image, strength):
    """A hole of half the side around a centre that may lie near the edge."""
    out, side = image.copy(), image.shape[1]
    for row in range(side):
        for column in range(side):
            if abs(row + 0.5 - strength[0] * side) < side / 4 and abs(column + 0.5 - strength[1] * side) < side / 4:
                out[:, row, column] = 0
    return out


def crop(image, strength):
    """Moves by up to an eighth of the side; what comes from outside is 0."""
    out, side = np.zeros_like(image), image.shape[1]
    down, right = (round((s - 0.5) * 2 * side * 0.125) for s in strength)
    for row in range(side):
        for column in range(side):
            if 0 <= row + down < side and 0 <= column + right < side:
                out[:, row, column] = image[:, row + down, column + right]
    return out


def flip(image, strength):
    return image[:, :, ::-1] if strength[0] < 0.5 else image


def flip_vertical(image, strength):
    return image[:, ::-1] if strength[0] < 0.5 else image


BY_LOOP = {
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "cutout": cutout,
    "crop": crop,
    "flip": flip,
    "flip_vertical": flip_vertical,
}
