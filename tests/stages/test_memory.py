"""What a matching step may take, where settings say it and where they don't."""

import pytest
import torch

from ptm_ray.stages.memory import matching_budget, peak_memory

GPU = torch.device("cuda")


@pytest.mark.parametrize(("asked", "mib"), [(None, 2048), (0, 0), (300, 300)])
def test_of_a_processor(asked, mib):
    assert matching_budget(asked, torch.device("cpu")) == mib * 2**20


def test_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**10))
    assert matching_budget(None, GPU) == 5 * 10**8
    assert matching_budget(0, GPU) == 0
    assert matching_budget(7, GPU) == 7 * 2**20


def test_the_peak_of_a_process_is_what_it_once_held():
    before = peak_memory("cpu")
    held = torch.ones(2**28, dtype=torch.uint8)
    del held
    assert peak_memory("cpu") >= max(before, 2**28)


def test_the_peak_on_a_gpu_is_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 12345)
    assert peak_memory("cuda") == 12345
