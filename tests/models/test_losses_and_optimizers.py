from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from histolight.config.schema import OptimizerConfig, SchedulerConfig
from histolight.errors import RequestError
from histolight.models.losses import binary_loss, positive_weight
from histolight.models.optimizers import build_optimizer, build_scheduler, parameter_groups


@pytest.mark.parametrize(("setting", "expected"), [("balanced", 3 / 2), ("inverse", 2 / 3), (None, 1.0), ("2.5", 2.5)])
def test_positive_weight(setting: str | None, expected: float) -> None:
    assert positive_weight(setting, np.array([0, 0, 0, 1, 1])) == pytest.approx(expected)


def test_a_balanced_weight_needs_both_classes() -> None:
    with pytest.raises(RequestError, match="both classes"):
        positive_weight("balanced", np.zeros(3))


def test_loss_is_the_formula() -> None:
    logits, labels = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 1.0])
    expected = 0.0
    for logit, label in zip(logits.tolist(), labels.tolist(), strict=True):
        score, target = 1 / (1 + math.exp(-logit)), label * 0.9 + 0.05
        expected -= 2.5 * target * math.log(score) + (1 - target) * math.log(1 - score)
    assert float(binary_loss(logits, labels, 2.5, 0.1)) == pytest.approx(expected / 3, rel=1e-5)


def test_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    loss = binary_loss(torch.tensor([30.0], dtype=torch.bfloat16), torch.tensor([0.0]), 1.0, 0.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(30.0)


def test_the_weight_of_positive_tiles_is_not_rounded_to_half_precision() -> None:
    logit = torch.tensor([0.0], dtype=torch.bfloat16)
    assert float(binary_loss(logit, torch.tensor([1.0]), 1.46895, 0.0)) == pytest.approx(
        1.46895 * math.log(2), rel=1e-6
    )


def rates(config: SchedulerConfig, steps: int, peak: float = 0.1, name: str = "adam") -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([{"params": [parameter], "lr": peak}], OptimizerConfig(name=name))
    scheduler = build_scheduler(optimizer, config, steps)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    found = rates(SchedulerConfig(), 100)
    assert found[0] == pytest.approx(0.1 / 25)
    assert max(found) == pytest.approx(0.1)
    assert found.index(max(found)) == pytest.approx(29, abs=1)
    assert found[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_one_cycle_leaves_the_momentum_of_sgd_as_it_is_set() -> None:
    config = OptimizerConfig(name="sgd", momentum=0.5)
    optimizer = build_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}], config)
    scheduler = build_scheduler(optimizer, SchedulerConfig(), 10)
    seen = set()
    for _ in range(10):
        seen.add(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert seen == {0.5}


@pytest.mark.parametrize(
    ("pct_start", "steps", "said"), [(0.1, 10, "10 steps"), (0.5, 2, "2 steps"), (0.3, 1, "1 step")]
)
def test_one_cycle_that_cannot_rise_and_fall_is_refused(pct_start: float, steps: int, said: str) -> None:
    with pytest.raises(RequestError, match=f"can't rise and fall over {said}: use a smaller data.batch_size"):
        rates(SchedulerConfig(pct_start=pct_start), steps)
    rates(SchedulerConfig(pct_start=pct_start), steps + 1)
    assert set(rates(SchedulerConfig(name="constant"), steps)) == {0.1}


def test_cosine_falls_from_the_peak_and_constant_stays() -> None:
    found = rates(SchedulerConfig(name="cosine"), 100)
    assert found == sorted(found, reverse=True)
    assert found[0] == 0.1
    assert found[50] == pytest.approx(0.05)
    assert set(rates(SchedulerConfig(name="constant"), 10)) == {0.1}


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimizers_by_name(name: str, kind: str) -> None:
    config = OptimizerConfig(name=name, lr=0.5, weight_decay=0.1)
    network = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    optimizer = build_optimizer(parameter_groups(network, "0", config), config)
    assert type(optimizer).__name__ == kind
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.1)]
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


@pytest.mark.parametrize(("name", "of_biases"), [("adam", 0.1), ("sgd", 0.1), ("adamw", 0.0)])
def test_adamw_alone_decays_no_biases_and_no_normalisation(name: str, of_biases: float) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 1))
    groups = parameter_groups(network, "2", OptimizerConfig(name=name, weight_decay=0.1))
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert [decays[id(parameter)] for parameter in network.parameters()] == [0.1, *[of_biases] * 3, 0.1, of_biases]


def test_the_backbone_learns_at_its_own_peak_and_a_frozen_part_not_at_all() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    network[0].bias.requires_grad_(False)
    config = OptimizerConfig(lr=0.1, backbone_lr_factor=0.2)
    groups = parameter_groups(network, "1", config)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates == {
        id(network[0].weight): pytest.approx(0.02),
        id(network[1].weight): 0.1,
        id(network[1].bias): 0.1,
    }
    optimizer = build_optimizer(groups, config)
    scheduler = build_scheduler(optimizer, SchedulerConfig(), 100)
    peaks = [0.0, 0.0]
    for _ in range(100):
        peaks = [max(peak, group["lr"]) for peak, group in zip(peaks, optimizer.param_groups, strict=True)]
        optimizer.step()
        scheduler.step()
    assert peaks == [pytest.approx(0.02), pytest.approx(0.1)]
