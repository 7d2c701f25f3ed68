"""ptm-ray: distil labelled medical images into a few synthetic images per class."""

__version__ = "0.1.0"
