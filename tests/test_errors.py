"""Words that messages are made of."""

import pytest

from ptm_ray.errors import without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/patients_2024/scans.npz lacks train_labels", "scans.npz lacks train_labels"),
        ("no file or folder /none; give an npz", "no file or folder none; give an npz"),
        ("~/p/a.png: the image (in ../p/b.parquet) is cut", "a.png: the image (in b.parquet) is cut"),
        ('File "/usr/lib/ray/worker.py", line 7, in run', 'File "worker.py", line 7, in run'),
        ("s3://bucket/runs/x: 3/4 of mean and/or 28×28 / 7", "s3://bucket/runs/x: 3/4 of mean and/or 28×28 / 7"),
    ],
)
def test_a_report_names_files_and_no_folders(text, shown):
    assert without_folders(text) == shown
