from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_packs import memory_tiles
from scipy.special import expit, logit
from untrained_runs import untrained_run

from histolight.config.schema import TrainerConfig
from histolight.data.datamodule import to_floats
from histolight.errors import HistolightError, RequestError
from histolight.inference.networks import (
    inference_device,
    inference_precision,
    load_classifier,
    load_classifiers,
    mean_logits,
    predict_logits,
    resumable_logits,
    tile_views,
)
from histolight.models.classifier import Classifier

SIZE = 32
CPU = TrainerConfig(accelerator="cpu")
RUN = [f"data.image_size={SIZE}", "model.name=shufflenet_v2_x0_5", "model.weights=null", "trainer=cpu"]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two architectures with two normalisations."""
    root = tmp_path_factory.mktemp("members")
    first = untrained_run(root / "a", [*RUN, "model.normalize=none"], seed=1)
    second = untrained_run(root / "b", [*RUN, "model.name=mobilenet_v2", "model.normalize=imagenet"], seed=2)
    return [first, second]


@pytest.fixture
def pixels() -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.random((11, SIZE, SIZE, 3)) * random.integers(20, 256, (11, 1, 1, 3))).astype(np.uint8)


def by_hand(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """One tile at a time, normalised here."""
    mean, std = (buffer.view(3).numpy() for buffer in (classifier.mean, classifier.std))
    logits = []
    for tile in pixels:
        values = ((tile / 255.0 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            logits.append(float(classifier.backbone(torch.from_numpy(values))))
    return np.array(logits)


def predicted(classifiers: list[Classifier], pixels: np.ndarray, tta: str = "none", rows=None) -> np.ndarray:
    rows = np.arange(len(pixels)) if rows is None else rows
    return np.concatenate(list(predict_logits(classifiers, memory_tiles(pixels), rows, CPU, 4, tta)))


def test_logits_of_an_ensemble_are_those_of_each_member_in_the_order_of_the_rows(members, pixels) -> None:
    classifiers = load_classifiers(members, SIZE)
    rows = np.array([7, 0, 3, 3, 10, 1])
    expected = np.column_stack([by_hand(classifier, pixels[rows]) for classifier in classifiers])
    assert np.ptp(expected, axis=0).min() > 0.1
    found = predicted(classifiers, pixels, rows=rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_views_are_the_symmetries_of_the_square() -> None:
    tile = np.arange(3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE)
    turned = [np.rot90(tile, turns, axes=(2, 3)) for turns in range(4)]
    symmetries = {image.tobytes() for image in [*turned, *(np.flip(image, 3) for image in turned)]}
    views = [view.numpy() for view in tile_views(torch.from_numpy(tile), "dihedral")]
    assert len(views) == len(symmetries) == 8
    assert {view.tobytes() for view in views} == symmetries
    flips = [tile, tile[..., ::-1], tile[:, :, ::-1], tile[:, :, ::-1, ::-1]]
    views = [view.numpy() for view in tile_views(torch.from_numpy(tile), "flips")]
    assert sorted(view.tobytes() for view in views) == sorted(view.tobytes() for view in flips)
    assert [view.tolist() for view in tile_views(torch.from_numpy(tile), "none")] == [tile.tolist()]


@pytest.mark.parametrize("tta", ["flips", "dihedral"])
def test_tta_averages_the_logits_of_the_views(members, pixels, tta) -> None:
    classifier = load_classifier(members[1])
    turns = range(4) if tta == "dihedral" else (0, 2)
    views = [np.rot90(pixels, turn, axes=(1, 2)) for turn in turns]
    views += [np.flip(view, 2) for view in views]
    each = np.array([by_hand(classifier, view) for view in views])
    assert np.ptp(each, axis=0).max() > 0.05
    found = predicted([classifier], pixels, tta)[:, 0]
    np.testing.assert_allclose(found, each.mean(axis=0), rtol=1e-3, atol=1e-4)


def test_ensembles_average_logits_or_probabilities() -> None:
    logits = np.array([[0.5, 2.0, -1.0], [-3.0, 0.25, 4.0]], dtype=np.float32)
    np.testing.assert_allclose(mean_logits(logits, "logit"), [0.5, 1.25 / 3], rtol=1e-6)
    expected = logit(expit(logits.astype(float)).mean(axis=1))
    np.testing.assert_allclose(mean_logits(logits, "probability"), expected, rtol=1e-6)
    for mean in ("logit", "probability"):
        np.testing.assert_array_equal(mean_logits(logits[:, :1], mean), logits[:, 0])


def test_the_mean_of_probabilities_of_very_sure_networks_stays_finite() -> None:
    found = mean_logits(np.array([[200.0, 300.0], [-200.0, -300.0]], dtype=np.float32), "probability")
    np.testing.assert_allclose(found, [200 + np.log(2), -200 - np.log(2)], rtol=1e-6)


def test_what_was_cut_short_goes_on_to_the_same_bits(members, pixels, tmp_path) -> None:
    classifiers, rows = load_classifiers(members, SIZE), np.arange(len(pixels))
    request = (classifiers, memory_tiles(pixels), rows, CPU, 4, "flips")
    whole = resumable_logits(tmp_path / "whole", b"request\n", *request)
    data = (tmp_path / "whole").read_bytes()
    record = 4 * 4 * 2 + 4  # four tiles, two members, CRC-32
    np.testing.assert_array_equal(whole, predicted(classifiers, pixels, "flips"))
    torn = {"header": data[:8], "one batch": data[: 8 + record], "torn": data[: 8 + record + 5]}
    torn["flipped bit"] = data[: 8 + record] + bytes([data[8 + record] ^ 1]) + data[9 + record :]
    torn["zeros"] = data[: 8 + record].ljust(len(data), b"\0")
    for name, beginning in torn.items():
        (tmp_path / name).write_bytes(beginning)
        np.testing.assert_array_equal(resumable_logits(tmp_path / name, b"request\n", *request), whole)
        assert (tmp_path / name).read_bytes() == data, name


def test_finished_batches_are_not_computed_again(members, pixels, tmp_path) -> None:
    classifiers = load_classifiers(members[:1], SIZE)
    request = (memory_tiles(pixels), np.arange(len(pixels)), CPU, 4, "none")
    resumable_logits(tmp_path / "file", b"request\n", classifiers, *request)
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-16])  # the last batch: three tiles
    seen: list[int] = []
    classifiers[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    resumable_logits(tmp_path / "file", b"request\n", classifiers, *request)
    assert seen == [3]


def test_the_beginning_of_another_prediction_is_left_alone(members, pixels, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"another request\n1234")
    with pytest.raises(RequestError, match="is the beginning of another prediction"):
        resumable_logits(
            tmp_path / "file",
            b"request\n",
            load_classifiers(members[:1], SIZE),
            memory_tiles(pixels),
            np.arange(len(pixels)),
            CPU,
            4,
            "none",
        )
    assert (tmp_path / "file").read_bytes() == b"another request\n1234"


def test_logits_that_are_not_finite_are_an_error(members, pixels) -> None:
    classifier = load_classifier(members[0])
    for weight in classifier.backbone.get_submodule(classifier.head).parameters():
        weight.fill_(torch.nan)
    with pytest.raises(HistolightError, match=r"not finite \(32-true\)"):
        predicted([classifier], pixels)


def test_members_are_trained_on_tiles_of_one_size(members) -> None:
    with pytest.raises(RequestError, match="a was trained on tiles of 32 pixels, and these have 96"):
        load_classifiers(members, 96)


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_an_unfinished_run_has_no_classifier(tmp_path, status) -> None:
    untrained_run(tmp_path / "run", RUN, status=status)
    with pytest.raises(
        RequestError, match=rf"run is {status}, not completed.*: .*continue it with histolight train run="
    ):
        load_classifier(tmp_path / "run")


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_missing_or_damaged_checkpoint_is_one_line(tmp_path, content) -> None:
    path = untrained_run(tmp_path / "run", RUN) / "checkpoints" / "best.ckpt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=r"best\.ckpt (is missing|can't be read)") as caught:
        load_classifier(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_and_the_runs_own_is_taken(tmp_path) -> None:
    run, other = untrained_run(tmp_path / "run", RUN), untrained_run(tmp_path / "other", [*RUN, "model.name=resnet18"])
    own = (run / "checkpoints" / "best.ckpt").read_bytes()
    shutil.copy(other / "checkpoints" / "best.ckpt", run / "checkpoints")
    with pytest.raises(
        RequestError, match=r"best.ckpt is of resnet18, and the run's config.yaml says shufflenet_v2_x0_5"
    ):
        load_classifier(run)
    (run / "checkpoints" / "best.ckpt").write_bytes(own)
    assert load_classifier(run).model_config.name == "shufflenet_v2_x0_5"


def test_a_cpu_computes_in_float32() -> None:
    cpu = torch.device("cpu")
    assert inference_device(CPU) == cpu
    assert inference_precision(TrainerConfig(precision="16-mixed"), cpu) == "32-true"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="PyTorch sees no GPU here"):
        inference_device(TrainerConfig(accelerator="gpu"))


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_logits_of_a_cpu(members, pixels) -> None:
    expected = predicted(load_classifiers(members, SIZE), pixels, "dihedral")
    for precision, tolerance in (("32-true", 1e-2), ("bf16-mixed", 0.2)):
        settings = TrainerConfig(accelerator="gpu", precision=precision)
        rows = np.arange(len(pixels))
        batches = predict_logits(load_classifiers(members, SIZE), memory_tiles(pixels), rows, settings, 4, "dihedral")
        np.testing.assert_allclose(np.concatenate(list(batches)), expected, atol=tolerance)


def test_each_member_sees_tiles_with_the_stain_normalisation_that_it_was_trained_with(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    stains = ("none", "macenko", "reinhard", "none")
    directories = [
        untrained_run(tmp_path / f"{number}", [*RUN, f"data.stain={stain}"], seed=1)
        for number, stain in enumerate(stains)
    ]
    old = directories[3] / "checkpoints" / "best.ckpt"  # as of before the key existed
    checkpoint = torch.load(old, weights_only=True)
    del checkpoint["hyper_parameters"]["stain"]
    torch.save(checkpoint, old)
    classifiers = load_classifiers(directories, SIZE)
    assert tuple(classifier.stain for classifier in classifiers) == stains
    logits = np.concatenate(list(predict_logits(classifiers, memory_tiles(pixels), np.arange(11), CPU, 4, "flips")))
    for column, classifier in zip(logits.T, classifiers, strict=True):
        with torch.no_grad():
            tiles = to_floats(torch.from_numpy(pixels), classifier.stain)
            expected = torch.stack([classifier(view) for view in tile_views(tiles, "flips")]).mean(0)
        np.testing.assert_allclose(column, expected, atol=1e-4)
    assert np.abs(np.diff(logits[:, :3], axis=1)).max(axis=0).min() > 0.01
    np.testing.assert_array_equal(logits[:, 0], logits[:, 3])
