"""What is asked of the machine; precisions and compiling are tested with the trainings that use them."""

from __future__ import annotations

import os

import pytest
import torch

from histolight.hardware import prepare_matrix_products, quick_look_for_gpus


@pytest.mark.parametrize(("gpus", "within"), [(0, None), (1, "1")])
def test_nvml_is_asked_for_gpus_only_where_there_is_one(gpus: int, within: str | None, monkeypatch) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(KeyboardInterrupt), quick_look_for_gpus():
        assert os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") == within
        raise KeyboardInterrupt
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_products_can_be_repeatable_from_the_first_one_on(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = torch.get_float32_matmul_precision()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        prepare_matrix_products()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # one of the two that PyTorch accepts
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        prepare_matrix_products()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
