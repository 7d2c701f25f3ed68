"""What a matching step may take, where settings say it and where they don't."""

import pytest
import torch

from ptm_ray.stages.memory import matching_budget

GPU = torch.device("cuda")


@pytest.mark.parametrize(("asked", "mib"), [(None, 2048), (0, 0), (300, 300)])
def test_of_a_processor(asked, mib):
    assert matching_budget(asked, torch.device("cpu")) == mib * 2**20


def test_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**10))
    assert matching_budget(None, GPU) == 5 * 10**8
    assert matching_budget(0, GPU) == 0
    assert matching_budget(7, GPU) == 7 * 2**20
