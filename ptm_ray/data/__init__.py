"""Where images come from: every source becomes one `MedicalDataset`."""

from ptm_ray.data.dataset import MedicalDataset, Split
from ptm_ray.data.load import load_dataset

__all__ = ["MedicalDataset", "Split", "load_dataset"]
