from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from histolight.config.compose import compose_config, typed
from histolight.config.schema import Config, ModelConfig
from histolight.data.datamodule import to_floats
from histolight.errors import RequestError
from histolight.explanation.grad_cam import feature_layers, grad_cam
from histolight.inference.export import export_onnx
from histolight.inference.networks import load_classifier, tile_views
from histolight.models.backbones import build_backbone, check_weights, load_weights
from histolight.models.backbones.p4m import P4MBatchNorm, P4MConv, P4MDenseBlock, P4MDenseNet, P4MPooling
from histolight.models.classifier import Classifier
from histolight.runs import read_metrics, read_predictions
from histolight.training.callbacks import flops_per_tile
from histolight.training.fit import check_request, prepare_data, train

SIZE = 32

# The symmetries as matrices on (row, column) from the tile's centre, in the order of the maps of a channel: mirrored
# (m) first, then turned (r) by 90 degrees counter-clockwise as numpy.rot90 does.
TURN, MIRROR = np.array([[0, -1], [1, 0]]), np.array([[1, 0], [0, -1]])
GROUP = [np.linalg.matrix_power(TURN, r) @ np.linalg.matrix_power(MIRROR, m) for m in (0, 1) for r in range(4)]


def place(matrix: np.ndarray) -> int:
    return next(index for index, element in enumerate(GROUP) if np.array_equal(element, matrix))


def moved(maps: torch.Tensor, g: int, symmetries: int = 8) -> torch.Tensor:
    """Apply element g of the group to (N, C * symmetries, S, S), pixel by pixel: f(x, h) becomes f(g^-1 x, g^-1 h)."""
    size, inverse = maps.shape[-1], GROUP[g].T
    source = maps.unflatten(1, (-1, symmetries))
    result = torch.empty_like(source)
    for h, row, column in product(range(symmetries), range(size), range(size)):
        offset = np.array([2 * row - size + 1, 2 * column - size + 1])  # doubled, to be whole numbers
        i, j = (inverse @ offset + size - 1) // 2
        before = place(inverse @ GROUP[h]) if symmetries == 8 else 0
        result[:, :, h, row, column] = source[:, :, before, i, j]
    return result.flatten(1, 2)


def classifier(size: int = SIZE, **model: object) -> Classifier:
    torch.manual_seed(0)
    model = {"name": "p4m_densenet", "weights": None, **model}
    return Classifier(model=model, optimizer={}, scheduler={}, loss={}, image_size=size).eval()


def slow_convolution(maps: torch.Tensor, weight: torch.Tensor, symmetries: int) -> torch.Tensor:
    """Sum over offsets y and elements h of f(x + y, h) psi(g^-1 y, g^-1 h), as Cohen & Welling define it."""
    count, size, kernel = len(maps), maps.shape[-1], weight.shape[-1]
    source, psi = maps.unflatten(1, (-1, symmetries)), weight.unflatten(1, (-1, symmetries))
    result = torch.zeros(count, len(weight), 8, size, size, dtype=maps.dtype)
    reach = range(-(kernel // 2), kernel // 2 + 1)
    for g, h, row, column, down, right in product(range(8), range(symmetries), range(size), range(size), reach, reach):
        if 0 <= row + down < size and 0 <= column + right < size:
            i, j = GROUP[g].T @ np.array([down, right]) + kernel // 2
            before = place(GROUP[g].T @ GROUP[h]) if symmetries == 8 else 0
            seen = source[:, :, h, row + down, column + right]
            result[:, :, g, row, column] += seen @ psi[:, :, before, i, j].T
    return result.flatten(1, 2)


@pytest.mark.parametrize(("lifting", "kernel"), [(True, 3), (False, 3), (False, 1)])
def test_a_convolution_is_the_definition_s_sum(lifting: bool, kernel: int) -> None:
    torch.manual_seed(0)
    layer = P4MConv(2, 3, kernel, lifting).double()
    maps = torch.randn(2, 2 if lifting else 16, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = slow_convolution(maps, layer.weight, 1 if lifting else 8)
        torch.testing.assert_close(layer(maps), expected, atol=1e-10, rtol=0)


def random_norm() -> P4MBatchNorm:
    layer = P4MBatchNorm(2)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "symmetries"),
    [
        (lambda: P4MConv(2, 3, 3, lifting=True), (1, 8)),
        (lambda: P4MConv(2, 3, 3), (8, 8)),
        (lambda: P4MConv(2, 3, 1), (8, 8)),
        (random_norm, (8, 8)),
        (lambda: P4MDenseBlock(2, 3), (8, 8)),
        (lambda: nn.AvgPool2d(2), (8, 8)),
        (P4MPooling, (8, 1)),
        (lambda: P4MDenseNet(2, 2).features, (1, 1)),
    ],
    ids=["lifting", "conv3", "conv1", "norm", "block", "average", "pooling", "features"],
)
def test_a_layer_turns_and_mirrors_with_its_input(layer, symmetries: tuple[int, int], training: bool) -> None:
    torch.manual_seed(0)
    network = layer().double().train(training)
    channels, size = (3, 16) if isinstance(network, nn.Sequential) else (2, 6)
    maps = torch.randn(2, channels * symmetries[0], size, size, dtype=torch.float64)
    with torch.no_grad():
        result = network(maps)
        for g in range(8):
            turned = network(moved(maps, g, symmetries[0]))
            torch.testing.assert_close(turned, moved(result, g, symmetries[1]), atol=1e-10, rtol=0)
    assert result.std() > 1e-3


def test_batch_norm_shares_its_statistics_over_the_eight_maps() -> None:
    layer = P4MBatchNorm(2).double()
    maps = torch.randn(4, 16, 3, 3, dtype=torch.float64) + torch.arange(16)[:, None, None]
    result = layer(maps)
    mean = maps.numpy().reshape(4, 2, 8, 9).mean((0, 2, 3))
    np.testing.assert_allclose(layer.running_mean, 0.1 * mean, atol=1e-10)
    assert layer.weight.shape == (2,)
    np.testing.assert_allclose(result.detach().numpy().reshape(4, 2, 8, 9).mean((0, 2, 3)), 0, atol=1e-10)


def greatest_change(network: nn.Module, size: int) -> float:
    """How much a symmetry changes a logit at most, as a part of the spread of the logits of other tiles."""
    torch.manual_seed(0)
    tiles = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        logits = network(tiles)
        views = [torch.rot90(side, turns, (2, 3)) for side in (tiles, tiles.flip(3)) for turns in range(4)]
        change = max((network(view) - logits).abs().max().item() for view in views[1:])
    return change / logits.std().item()


@pytest.mark.parametrize(
    ("pooling", "size", "training"),
    [("mean", 96, False), ("mean", 48, True), ("centre", 48, False), ("centre", 16, True)],
)
def test_no_symmetry_of_the_square_changes_the_logit(pooling: str, size: int, training: bool) -> None:
    torch.manual_seed(1)
    network = build_backbone(ModelConfig("p4m_densenet", pooling=pooling), size).network.double().train(training)
    assert greatest_change(network, size) < 1e-10


def test_without_these_layers_it_does() -> None:
    torch.manual_seed(1)
    assert greatest_change(build_backbone(ModelConfig("densenet121"), 32).network.double().train(), 32) > 0.1
    network = P4MDenseNet()
    # On 40x40 pixels the last pooling drops a row and a column of a 5x5 map.
    assert greatest_change(network.double(), 40) > 1e-3


@pytest.mark.parametrize("size", [40, 50, 100])
def test_a_size_that_would_break_the_symmetry_is_refused(size: int) -> None:
    with pytest.raises(RequestError, match=f"multiple of 16, and {size} is none: add model.input_size="):
        build_backbone(ModelConfig("p4m_densenet"), size)


def test_imagenet_weights_are_refused_and_the_group_needs_none() -> None:
    message = "model.name=p4m_densenet has no ImageNet weights: use model.weights=null"
    config = typed(compose_config(["data=kaggle", "data.root=x", "model.name=p4m_densenet"]))
    with pytest.raises(RequestError, match=message):
        check_request(config)
    with pytest.raises(RequestError, match=message):
        load_weights(P4MDenseNet(), "classifier", ModelConfig("p4m_densenet", "imagenet"), 96)
    with pytest.raises(RequestError, match="missing.pth is not a file"):
        check_weights("p4m_densenet", "missing.pth")
    assert (
        check_request(typed(compose_config(["data=kaggle", "data.root=x", "model=p4m_densenet"]))).model.weights is None
    )


def test_its_size_is_that_of_the_docstring() -> None:
    assert sum(parameter.numel() for parameter in P4MDenseNet().parameters()) == 123_400


@pytest.fixture(scope="module")
def trained(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    overrides = ["model=p4m_densenet", "model.name=p4m_densenet", "trainer.max_epochs=4", "optimizer.lr=3e-3"]
    config = check_request(typed(compose_config([*small, *overrides])))
    directory = tmp_path_factory.mktemp("run")
    train(config, prepare_data(config, directory), directory, progress=False, drawn=False)
    return directory, config


def test_a_training_learns_and_its_checkpoint_is_the_symmetric_network(trained: tuple[Path, Config]) -> None:
    directory, config = trained
    val = read_metrics(directory)["val"]
    assert val["auroc"]["value"] > 0.8
    network = load_classifier(directory)
    part = read_predictions(directory / "predictions" / "val.csv")
    data = prepare_data(config, directory)
    rows = data.part("val").set_index("id").loc[part["id"], "row"].to_numpy()
    tiles = to_floats(torch.from_numpy(data.tiles.gather(rows)), "none")
    with torch.inference_mode():
        logits = network(tiles)
        np.testing.assert_allclose(logits, part["logit"], atol=1e-4)
        for view in tile_views(tiles, "dihedral"):
            torch.testing.assert_close(network(view), logits, atol=1e-4, rtol=0)


def test_a_training_step_lowers_the_loss() -> None:
    network = classifier(dropout=0.1).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    tiles, labels = torch.rand(16, 3, SIZE, SIZE), torch.arange(16) % 2 * 1.0
    tiles[labels == 1, :, 8:24, 8:24] -= 0.3
    losses = []
    for _ in range(10):
        loss = nn.functional.binary_cross_entropy_with_logits(network(tiles), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_frozen_backbone_trains_only_the_last_layer() -> None:
    network = classifier(freeze="backbone")
    assert {name for name, value in network.named_parameters() if value.requires_grad} == {
        "backbone.classifier.weight",
        "backbone.classifier.bias",
    }


def test_its_operations_are_those_of_its_convolutions() -> None:
    sides, channels, expected = [32, 16, 8, 4, 2], 9, 2 * 3 * 72 * 9 * 32**2
    for block, side in enumerate(sides):
        if block:
            expected += 2 * (8 * channels) ** 2 * side**2
        expected += 2 * 8 * channels * 72 * 9 * side**2
        channels += 9
    assert flops_per_tile(classifier()) == expected + 2 * channels


def test_grad_cam_turns_with_the_tile() -> None:
    network = classifier(size=96).requires_grad_(False)
    layer, last, _ = feature_layers(network.backbone, 96)
    assert layer == last
    tiles = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    called = np.array([True, False])
    maps = grad_cam(network, layer, tiles, called)
    assert maps.shape == (2, 6, 6)
    assert maps.std() > 0
    turned = grad_cam(network, layer, np.rot90(tiles, axes=(1, 2)).copy(), called)
    np.testing.assert_allclose(turned, np.rot90(maps, axes=(1, 2)), atol=1e-4 * maps.max())


@pytest.mark.slow
def test_its_onnx_file_gives_torchs_scores_and_is_as_symmetric(tmp_path: Path) -> None:
    network = classifier().requires_grad_(False)
    tiles = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    assert export_onnx(network, tiles, tmp_path / "model.onnx", {}) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(["logit"], {"tiles": tiles})[0]
    assert np.std(logits) > 1e-3
    turned = session.run(["logit"], {"tiles": np.rot90(tiles, axes=(1, 2)).copy()})[0]
    np.testing.assert_allclose(turned, logits, atol=1e-5)
