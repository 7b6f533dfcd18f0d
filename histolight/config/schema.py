"""The schema that every file of ``conf/`` and every override is checked against.

A field's type is checked by OmegaConf while Hydra composes; its range and its choices, stated here beside it, by
:func:`histolight.config.checks.check_values`. What a key means stands in the docstring of its class, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from histolight.config.fields import choice, number
from histolight.config.model_schema import LossConfig, ModelConfig, OptimizerConfig, SchedulerConfig

Schema = TypeVar("Schema")
CENTRE = 32  # pixels: the label of a tile is about its centre, CENTRE x CENTRE


@dataclass
class ColumnsConfig:
    """What the columns of a Parquet file are called; null finds the usual names.

    Attributes:
        image: Bytes of an image file, or structs of ``bytes`` and ``path``.
        label: 0/1, false/true, or names (``data.classes``).
        slide: The slide of each tile; splits are then by slide.
        centre: The hospital or scanner of each tile.
        split: Train, val or test; without it the names of the files say so, where they do.
        id: Names each tile.
    """

    image: str | None = None
    label: str | None = None
    slide: str | None = None
    centre: str | None = None
    split: str | None = None
    id: str | None = None


@dataclass
class SlideTilesConfig:
    """How ``data=slides`` cuts whole slides into labelled tiles; ``slides.KEY`` on the command line is short for these.

    Attributes:
        annotations: Folder with an annotation for each slide, ``NAME.geojson`` (QuPath), ``NAME.xml`` (ASAP) or
            ``NAME.png``/``.tif`` (not black is tumour); null is the slides' own, where a picture is ``NAME_mask.png``.
        positive: Classes that are tumour; null knows Tumor, Metastasis and other usual names. Of pictures: values.
        units: What the outlines are measured in: ``px`` at full resolution, ``um``, or a number, how many times smaller
            the level is whose pixels they are.
        labels: CSV ``slide,label``: 0 marks a slide that needs no annotation, as it holds no tumour.
        tiles_per_slide: Draw so many tiles of each slide, half of each class as far as it has them; null takes all.
        stride: Pixels from one tile to the next on the grid that they are drawn from.
        tissue: As ``slides.tissue`` of ``histolight predict``: ``otsu``, ``none``, or a folder of masks.
        model_mpp: Pixel size in microns to which the slides are resampled, the network's.
    """

    annotations: str | None = None
    positive: list[str] | None = None
    units: str = "px"
    labels: str | None = None
    tiles_per_slide: int | None = number(None, least=2)
    stride: int = number(CENTRE, least=1)
    tissue: str = "otsu"
    model_mpp: float | None = number(None, least=0.01, most=100)


@dataclass
class DataConfig:
    """Which tiles, how they are split, and how they reach the model.

    Attributes:
        source: Kind of data; ``histolight/data/sources/`` has one module each.
        root: Folder of the data (not for synthetic).
        cache: Folder for packs; null is the user's cache folder.
        seed: Decides which tiles: the sample (``limit``), the split and the folds. Apart from the top-level ``seed``.
        batch_size: Tiles per step (per device).
        limit: Use this many tiles only, sampled stratified by label (and by split, where the source has one).
        shots: Train on so many tiles of each class only, drawn from the training part anew for each ``seed``.
        val_fraction: Part of the tiles used for validation.
        test_fraction: Part of the tiles held out as test.
        folds: Number of folds of the cross-validation.
        fold: Which fold is validation; null is one hold-out split.
        split: ``auto`` takes the source's own split, else splits by slide, or where slides are unknown so that no tiles
            that share pixels lie on two sides; ``random`` heeds nothing; a CSV ``id,split`` is a split made elsewhere.
        groups: CSV ``id,<slide column>``: the slide of each tile. Splits are then by slide.
        domain: A second grouping, such as hospitals or scanners: ``source`` is the one that the data bring, a CSV
            ``id,<centre column>`` gives one. Folds then leave one domain out, and figures are given for each.
        classes: Names of the negative and the positive class folder, or of such labels; null knows 0/1 and the usual
            names.
        columns: What the columns of ``data=parquet`` are called.
        image_size: Height and width of a tile in pixels.
        mpp: Pixel size of the tiles as cut, in microns; of ``data=slides`` that of the slides at full resolution, where
            null takes it from each file. Null is unknown.
        mpp_tolerance: Pixel sizes whose ratio differs from 1 by no more than this count as equal.
        residency: ``device`` keeps the tiles in the device's memory, ``memmap`` streams them, ``auto`` chooses.
        sampler: ``shuffle`` shows each training tile once an epoch, ``balanced`` draws both classes alike.
        stain: Normalisation of the stains, tile by tile and in front of augmentation, wherever the trained network is
            used too: ``macenko`` or ``reinhard``.
        augment_val: Augment validation tiles too. A fault of the notebook, kept for ``experiment=notebook`` alone.
        slides: How whole slides are cut into tiles.
    """

    source: str = "synthetic"
    root: str | None = None
    cache: str | None = None
    seed: int = number(0, least=0, most=2**32 - 2)
    batch_size: int = number(64, least=1)
    limit: int | None = number(None, least=1)
    shots: int | None = number(None, least=1)
    val_fraction: float = number(0.2, above=0, most=0.5)
    test_fraction: float = number(0.0, least=0, most=0.5)
    folds: int = number(5, least=2)
    fold: int | None = number(None, least=0)
    split: str = "auto"
    groups: str | None = None
    domain: str | None = None
    classes: list[str] | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    image_size: int = number(96, least=CENTRE)
    mpp: float | None = number(None, least=0.01, most=100)
    mpp_tolerance: float = number(0.1, least=0, most=0.5)
    residency: str = choice("auto", "device", "memmap")
    sampler: str = choice("shuffle", "balanced")
    stain: str = choice("none", "macenko", "reinhard")
    augment_val: bool = False
    slides: SlideTilesConfig = field(default_factory=SlideTilesConfig)


RESAMPLED = frozenset({"slides"})  # sources whose tiles are cut at data.slides.model_mpp


def tile_mpp(data: DataConfig) -> float | None:
    """Return the pixel size of the tiles in microns: whole slides are resampled to ``data.slides.model_mpp``."""
    return data.slides.model_mpp if data.source in RESAMPLED else data.mpp


def conf_directory() -> Path:
    """Return the folder of YAML files: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@functools.cache
def augmentation_keys() -> list[str]:
    """List the strengths of augmentation: the keys of ``conf/augment/*.yaml`` but ``geometry``."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(conf_directory().glob("augment/*.yaml")))
    keys = dict.fromkeys(key for text in texts for key in yaml.safe_load(text))
    return [key for key in keys if key != "geometry"]


def _with_strengths(schema: type[Schema]) -> type[Schema]:
    for key in augmentation_keys():
        schema.__annotations__[key] = "float"
        setattr(schema, key, 0.0)
    return schema


@dataclass
@_with_strengths
class AugmentConfig:
    """Random changes of training tiles, drawn per tile, that leave the centre 32x32 in place.

    Besides these it has a strength for each key of ``conf/augment/*.yaml``, 0 unless given: ``histolight/augment`` has
    a function for each, with what the strength means and its range.

    Attributes:
        geometry: ``flips`` is both mirror flips, ``dihedral`` the eight symmetries of the square.
        cutmix: Probability that a box of another tile replaces a part of a tile. The label is mixed by the part of the
            centre 32x32 that is replaced: it stays where the box does not touch the centre.
        mixup: Tiles that are not cut, and their labels, are blended with another's; its share is drawn from Beta(m, m),
            0 blends none.
    """

    geometry: str = choice("none", "flips", "dihedral")
    cutmix: float = number(0.0, least=0, most=1)
    mixup: float = number(0.0, least=0, most=10)


@dataclass
class TrainerConfig:
    """How long, where and how exactly Lightning trains.

    Attributes:
        max_epochs: Epochs.
        accelerator: ``auto``, ``cpu``, ``gpu`` or another of Lightning's.
        devices: How many, or ``auto``.
        num_nodes: Machines that share this one run.
        strategy: ``auto`` or ``ddp``.
        precision: ``auto`` is bf16-mixed on a GPU that has it, 16-mixed on another GPU, 32-true on a CPU.
        compile: Compile the backbone; ``reduce-overhead`` adds CUDA graphs.
        deterministic: Bit-for-bit repeatable on a GPU too, more slowly.
        accumulate: Batches per optimizer step.
        clip: Largest gradient norm; null does not clip.
        ema: Validate and keep an exponential moving average of the weights, of which each step keeps this part, such as
            0.99; null keeps the weights themselves.
        swa: Validate and keep the mean of the weights (stochastic weight averaging) from this part of the steps on,
            such as 0.75; until then the weights themselves.
        find_lr: First draw the loss of a copy of the network at rising learning rates, ``figures/lr_finder.png``, and
            print which one Smith's range test suggests; the training takes ``optimizer.lr`` all the same.
        patience: Stop after so many epochs without a better validation AUROC; null runs all (early stopping cuts the
            anneal off).
        profiler: ``simple`` or ``pytorch`` writes where the time goes into the run directory, ``fit-profile.txt``.
    """

    max_epochs: int = number(5, least=1)
    accelerator: str = choice("auto", "cpu", "gpu")
    devices: str = "1"
    num_nodes: int = number(1, least=1)
    strategy: str = choice("auto", "ddp")
    precision: str = choice("auto", "32-true", "16-mixed", "bf16-mixed")
    compile: str = choice("none", "default", "reduce-overhead")
    deterministic: bool = False
    accumulate: int = number(1, least=1)
    clip: float | None = number(None, above=0)
    ema: float | None = number(None, above=0, below=1)
    swa: float | None = number(None, least=0, below=1)
    find_lr: bool = False
    patience: int | None = number(None, least=1)
    profiler: str = choice("none", "simple", "pytorch")


@dataclass
class LoggerConfig:
    """Where the curves go.

    Attributes:
        name: ``tensorboard``, ``csv``, ``mlflow`` or ``wandb`` (Weights & Biases).
        project: MLflow's experiment, or Weights & Biases' project.
        uri: MLflow's tracking URI; null is an SQLite store inside the run directory.
        offline: Weights & Biases keeps its files in the run directory and touches no network.
    """

    name: str = choice("tensorboard", "csv", "mlflow", "wandb")
    project: str = "histolight"
    uri: str | None = None
    offline: bool = True


@dataclass
class SlidesConfig:
    """How ``histolight predict data=slides`` scores whole slides; no part of a training.

    Attributes:
        stride: Pixels from one tile to the next, at the network's pixel size. At 32 the centres of the tiles, which the
            label speaks of, cover the slide once.
        tissue: ``otsu`` scores where the slide shows tissue, ``none`` all of it, a folder where its mask ``NAME.png``
            is not black.
        threshold: A tile is called tumour when its score is above it; null is the run's own, chosen on validation, or
            of an ensemble the mean over the runs.
        model_mpp: Pixel size in microns of the tiles that the network was trained on; null is what the run says.
    """

    stride: int = number(32, least=1)
    tissue: str = "otsu"
    threshold: float | None = number(None, least=0, most=1)
    model_mpp: float | None = number(None, least=0.01, most=100)


@dataclass
class ReportConfig:
    """What ``metrics.json`` and the page say beside the figures; no part of a training.

    Attributes:
        abstain: No more than this share of validation's tumour tiles lies below the scores that are called neither
            benign nor tumour, and of its benign tiles above.
        prevalence: Share of tumour tiles at which to say what a call means (predictive values); null says nothing.
    """

    abstain: float = number(0.05, above=0, below=0.5)
    prevalence: float | None = number(None, above=0, below=1)


@dataclass
class Config:
    """A whole run.

    Attributes:
        seed: Initial weights, order of the tiles, augmentation, dropout. Which tiles is ``data.seed``.
        name: Name of the run or the sweep: letters, digits, dots, dashes, underscores.
        run: A run directory to continue.
        like: A run directory whose configuration to start from.
    """

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    seed: int = number(0, least=0, most=2**32 - 1)
    name: str = "synthetic"
    run: str | None = None
    like: str | None = None


@dataclass
class SweepConfig:
    """How a sweep goes about its points; no part of any of them.

    Attributes:
        points_per_gpu: So many points share a GPU at a time, each with its part of the memory
            (``hydra/launcher=joblib`` or ``ray``).
        sampler: ``grid`` trains every combination of lists, ``tpe`` lets Optuna's TPE choose points, ``auto`` is
            ``tpe`` where an axis is an interval and else ``grid``.
        pruner: Which of Optuna's pruners stops points by their validation AUROC after each epoch: ``asha`` (successive
            halving), ``hyperband`` or ``median``. A grid is then tried in an order drawn from ``seed``.
        n_trials: So many points; null is all of a grid, else 20.
        timeout: Seconds after which no further point begins; null is none.
        workers: Jobs that ask the search at a time; null is ``hydra.launcher.n_jobs`` of joblib.
        seeds: So many further seeds for each leader, once all points have the first one, which the comparison's verdict
            does not count.
        leaders: So many points, the best by validation AUROC, get these seeds.
    """

    points_per_gpu: int = number(1, least=1)
    sampler: str = choice("grid", "tpe", "auto")
    pruner: str = choice("none", "median", "hyperband", "asha")
    n_trials: int | None = number(None, least=1)
    timeout: float | None = number(None, above=0)
    workers: int | None = number(None, least=1)
    seeds: int = number(0, least=0)
    leaders: int = number(3, least=1)


@dataclass
class RequestedConfig(Config):
    """What a command line may say: a run, and how to sweep.

    Attributes:
        sweep: As :class:`SweepConfig`.
    """

    sweep: SweepConfig = field(default_factory=SweepConfig)


def valid_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """List every key of the schema in dotted form.

    >>> valid_keys(OptimizerConfig, "optimizer.")  # doctest: +NORMALIZE_WHITESPACE
    ['optimizer.name', 'optimizer.lr', 'optimizer.weight_decay', 'optimizer.momentum',
     'optimizer.backbone_lr_factor', 'optimizer.layer_decay']
    """
    types = typing.get_type_hints(schema)
    keys: list[str] = []
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(types[item.name]):
            keys += valid_keys(types[item.name], f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys
