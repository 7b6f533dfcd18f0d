"""Procedural tiles in the manner of H&E: nothing to download, and a task that is neither trivial nor hopeless.

A tile is a function of its slide and its number alone. Haematoxylin and eosin are painted as amounts of stain, which
become light by Beer and Lambert's law. Slides differ in stains, light, sharpness and cells, so that a random split
flatters here as it does on real tiles.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, gaussian_filter

from histolight.config.schema import CENTRE, DataConfig
from histolight.data.table import Source, fingerprint

SLIDES = 20
TILES_PER_SLIDE = 100

_SEED = 20181122
_MARGIN = 16  # pixels around the tile where nuclei lie too: the tile is cut out of something larger

# Optical densities of haematoxylin and eosin in red, green and blue, as Ruifrok & Johnston (2001) and as Macenko et al.
# (2009) found them. The stains of a slide lie somewhere between.
_RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
_MACENKO = np.array([[0.563, 0.720, 0.406], [0.216, 0.801, 0.558]])


@dataclass(frozen=True)
class Slide:
    """What the tiles of one slide have in common.

    Attributes:
        name: Such as ``slide_07``.
        labels: int8 (TILES_PER_SLIDE,): the label of each tile.
        stains: float (2, 3): optical density of one unit of haematoxylin and of eosin in red, green and blue.
        amounts: float (2,): units of haematoxylin in a dark nucleus, and of eosin in dense stroma.
        glass: float (3,): light that passes where there is no tissue, 0 to 1.
        blur: Standard deviation of the least blur of a tile, in pixels.
        stroma: Leaning to stroma (positive) or to lymphoid tissue (negative).
        radius: Of a lymphocyte's nucleus, in pixels.
        growth: Factor from there to the nucleus of a tumour cell.
        pallor: How much paler than a lymphocyte's the nucleus of a tumour cell is, 0 to 1.
        mimics: Part of the benign nuclei that are large and pale too.
    """

    name: str
    labels: np.ndarray
    stains: np.ndarray
    amounts: np.ndarray
    glass: np.ndarray
    blur: float
    stroma: float
    radius: float
    growth: float
    pallor: float
    mimics: float


@dataclass(frozen=True)
class _Nuclei:
    """Nuclei, one for each place of the arrays; ``x``, ``y`` and ``radius`` in pixels, ``angle`` in radians."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    aspect: np.ndarray
    angle: np.ndarray
    irregularity: np.ndarray
    darkness: np.ndarray
    hollow: np.ndarray
    nucleolus: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def only(self, chosen: np.ndarray) -> _Nuclei:
        return _Nuclei(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def load(config: DataConfig) -> Source:
    """List the tiles of all slides. ``data.seed`` has no influence on their pixels or labels."""
    rows = [
        (f"{slide.name}_{index:04d}", slide.labels[index], slide.name)
        for slide in map(make_slide, range(SLIDES))
        for index in range(TILES_PER_SLIDE)
    ]
    table = pd.DataFrame(rows, columns=["id", "label", "group"]).astype({"label": np.int8})
    table["split"] = pd.Series([None] * len(table), dtype=object)
    table["row"] = np.arange(len(table), dtype=np.int64)

    def read_tile(row: int) -> np.ndarray:
        return draw_tile(*divmod(row, TILES_PER_SLIDE), config.image_size)[0]

    # One tile of each slide stands for all: what changes the pixels (this module, NumPy's generators) changes these.
    probes = ((read_tile(number * TILES_PER_SLIDE).tobytes(),) for number in range(SLIDES))
    return Source(table, "synthetic", fingerprint("synthetic", config.image_size, probes), read_tile)


@functools.cache
def make_slide(number: int) -> Slide:
    """Draw the properties of slide ``number``, 0 to SLIDES - 1."""
    random = _generator(number)
    stains = _RUIFROK + random.uniform(0, 1) * (_MACENKO - _RUIFROK) + random.normal(0, 0.04, (2, 3))
    stains = stains.clip(0.02)
    return Slide(
        name=f"slide_{number:02d}",
        labels=(random.permutation(TILES_PER_SLIDE) < TILES_PER_SLIDE * random.uniform(0.2, 0.6)).astype(np.int8),
        stains=stains / np.linalg.norm(stains, axis=1, keepdims=True),
        amounts=random.uniform([0.65, 0.16], [1.05, 0.36]),
        glass=random.uniform(0.88, 1.0) * random.uniform(0.96, 1.0, 3),
        blur=random.uniform(0.35, 0.8),
        stroma=random.normal(-0.2, 0.6),
        radius=random.uniform(2.8, 3.6),
        growth=random.uniform(1.5, 2.0),
        pallor=random.uniform(0.2, 0.5),
        mimics=random.uniform(0.0, 0.12),
    )


def draw_tile(number: int, index: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one tile. Thread-safe, and the same whenever it is called.

    The label is 1 exactly when a nucleus of a tumour cell reaches into the centre square. Of the other tiles, about
    half have tumour in the ring around it.

    Args:
        number: Number of the slide, 0 to SLIDES - 1.
        index: Number of the tile on its slide, 0 to TILES_PER_SLIDE - 1.
        image_size: Height and width S in pixels, at least 32: more or less tissue at the same scale.

    Returns:
        The pixels, uint8 (S, S, 3), and where the nuclei of tumour cells lie, bool (S, S).
    """
    slide, random = make_slide(number), _generator(number, index)
    atypia = random.uniform(0.1, 1)
    stroma = 1 / (1 + np.exp(-2.5 * (smooth_noise(random, image_size, 30) + slide.stroma + random.normal(0, 0.7))))
    gaps = 4 * (smooth_noise(random, image_size, 10) - random.uniform(0.9, 3.5)) + 0.5
    gaps = gaps.clip(0, 1)
    tumour = _tumour_nuclei(random, slide, image_size, bool(slide.labels[index]), atypia)
    benign = _benign_nuclei(random, slide, image_size, stroma, gaps, tumour)
    tumour_density, tumour_mask = _paint(random, tumour, image_size)
    benign_density, benign_mask = _paint(random, benign, image_size)

    cytoplasm = gaussian_filter(tumour_mask.astype(float), 3.5)
    eosin = (0.35 + 0.65 * stroma) * (0.8 + 0.15 * smooth_noise(random, image_size, 5))
    eosin += 0.15 * stroma * _fibres(random, image_size) + 0.25 * cytoplasm
    eosin *= (1 - gaps) * (1 + 2 * gaps)  # a membrane lines each gap
    eosin *= 1 - 0.5 * (benign_mask | tumour_mask)
    haze = (0.16 - 0.08 * stroma + 0.03 * smooth_noise(random, image_size, 3) + 0.1 * cytoplasm) * (1 - gaps)
    chromatin = 1 + 0.2 * random.standard_normal((image_size, image_size))
    haematoxylin = np.maximum(haze, np.maximum(benign_density, tumour_density) * chromatin)

    amounts = np.stack([haematoxylin, eosin], axis=-1).clip(0) * slide.amounts * random.uniform(0.9, 1.1, 2)
    light = transmit(amounts, slide.stains, slide.glass)
    blur = slide.blur + random.uniform(0, 0.3)
    light = gaussian_filter(light, (blur, blur, 0), truncate=3)
    light += 0.012 * random.standard_normal(light.shape, dtype=np.float32)
    return np.rint(255 * light.clip(0, 1)).astype(np.uint8), tumour_mask


def transmit(amounts: np.ndarray, stains: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Let light through stained tissue (Beer and Lambert): ``glass * 10 ** -(amounts @ stains)``.

    Args:
        amounts: float (..., 2), at least 0: units of haematoxylin and of eosin.
        stains: float (2, 3): optical density of one unit of each in red, green and blue.
        glass: float (3,): light that passes without tissue, 0 to 1.

    Returns:
        float (..., 3), 0 to ``glass``.

    >>> transmit(np.array([0.0, 1.0]), np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.ones(3)).round(9).tolist()
    [1.0, 0.1, 1.0]
    """
    return glass * np.exp(-np.log(10) * (amounts @ stains))


def smooth_noise(random: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Draw a Gaussian random field, float (size, size): mean 0, variance 1, smooth over ``scale`` pixels."""
    weights = _bumps(size, scale)
    return weights @ random.standard_normal((weights.shape[1], weights.shape[1])) @ weights.T


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(_SEED, spawn_key=key))


@functools.cache
def _bumps(size: int, scale: float) -> np.ndarray:
    """Weights of Gaussian bumps ``scale`` pixels apart in each of ``size`` pixels; a row's squares add up to 1."""
    knots = np.arange(-3 * scale, size + 3 * scale, scale)
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] - knots) / scale) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def _fibres(random: np.random.Generator, size: int) -> np.ndarray:
    """Draw wavy collagen, -1 to 1."""
    angle = random.uniform(0, np.pi)
    across = np.arange(size) * np.cos(angle) + np.arange(size)[:, None] * np.sin(angle)
    return np.sin(across * random.uniform(0.4, 0.9) + 4 * smooth_noise(random, size, 12)) * smooth_noise(
        random, size, 6
    )


def _scatter(random: np.random.Generator, size: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Scatter points over the tile and its margin, about ``spacing`` apart: a jittered grid of triangles."""
    steps = np.arange(-_MARGIN, size + _MARGIN, spacing)
    x, y = np.meshgrid(steps, steps)
    x[::2] += spacing / 2
    jitter = random.uniform(-spacing / 3, spacing / 3, (2, *x.shape))
    return (x + jitter[0]).ravel(), (y + jitter[1]).ravel()


def _benign_nuclei(
    random: np.random.Generator, slide: Slide, size: int, stroma: np.ndarray, gaps: np.ndarray, tumour: _Nuclei
) -> _Nuclei:
    """Place crowded lymphocytes where there is little stroma, and few, spindle-shaped nuclei where there is much."""
    x, y = _scatter(random, size, 2.35 * slide.radius)
    pixel = np.rint(y).clip(0, size - 1).astype(int), np.rint(x).clip(0, size - 1).astype(int)
    keep = random.random(len(x)) < (0.95 - 0.8 * stroma[pixel]) * (1 - gaps[pixel])
    apart = np.hypot(x[:, None] - tumour.x, y[:, None] - tumour.y) > tumour.radius + 0.8 * slide.radius
    keep &= apart.all(axis=1)
    x, y, stroma = x[keep], y[keep], stroma[pixel][keep]
    count = len(x)
    spindle = random.random(count) < 0.8 * stroma
    mimic = random.random(count) < slide.mimics
    return _Nuclei(
        x,
        y,
        radius=slide.radius * random.normal(1, 0.08, count) * np.where(mimic, random.uniform(1.2, 1.6, count), 1),
        aspect=np.where(spindle, random.uniform(1.8, 3.5, count), random.uniform(1, 1.35, count)),
        angle=random.uniform(0, np.pi, count),
        irregularity=np.full(count, 0.04),
        darkness=random.uniform(0.8, 1.05, count) - 0.3 * mimic,
        hollow=np.where(mimic, 0.3, 0.1),
        nucleolus=np.zeros(count),
    )


def _tumour_nuclei(random: np.random.Generator, slide: Slide, size: int, in_centre: bool, atypia: float) -> _Nuclei:
    """Place a nest of tumour cells that reaches into the centre; or else one beside it, or none.

    ``atypia``, 0 to 1, is how much they differ from lymphocytes in size, shape, paleness and nucleoli.
    """
    middle = (size - CENTRE) // 2 + (CENTRE - 1) / 2
    radius = slide.radius * (1 + atypia * (slide.growth - 1))
    extent = np.exp(random.uniform(np.log(6), np.log(80)))
    angle = random.uniform(0, 2 * np.pi)
    towards = np.array([np.cos(angle), np.sin(angle)])
    if in_centre:
        first = middle + random.uniform(-12, 12, 2)
        nest = first + towards * extent * random.uniform(0, 0.9)
    else:
        first = middle + towards / np.abs(towards).max() * random.uniform(CENTRE, size) / 2
        nest = first + towards * extent * 0.9
    x, y = _scatter(random, size, 2.3 * radius)
    inside = np.hypot(x - nest[0], y - nest[1]) < extent * random.normal(1, 0.25, len(x))
    inside &= np.hypot(x - first[0], y - first[1]) > 1.8 * radius
    x, y = np.append(x[inside], first[0]), np.append(y[inside], first[1])
    count = len(x)
    nuclei = _Nuclei(
        x,
        y,
        radius=radius * random.normal(1, 0.05 + 0.15 * atypia, count).clip(0.6, 1.5),
        aspect=random.uniform(1, 1.3 + 0.4 * atypia, count),
        angle=random.uniform(0, np.pi, count),
        irregularity=np.full(count, 0.04 + 0.06 * atypia),
        darkness=(1 - slide.pallor * atypia) * random.uniform(0.85, 1.15, count),
        hollow=np.full(count, 0.1 + 0.35 * atypia),
        nucleolus=0.35 * (random.random(count) < 0.6 * atypia),
    )
    if in_centre:
        return nuclei
    away = np.hypot(*(np.abs([x - middle, y - middle]) - CENTRE / 2).clip(0))
    # 1.8 radii contain the longest nucleus with its bulges.
    return nuclei.only((away > 1.8 * nuclei.radius + 1) & (random.random() < 0.6))


def _paint(random: np.random.Generator, nuclei: _Nuclei, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint nuclei, each only where it is the nearest: crowded ones flatten one another.

    Returns:
        The haematoxylin in them, float (size, size), and where they lie, bool (size, size).
    """
    row, column = np.rint(nuclei.y).astype(int) + _MARGIN, np.rint(nuclei.x).astype(int) + _MARGIN
    full = size + 2 * _MARGIN
    near = (row >= 0) & (row < full) & (column >= 0) & (column < full)
    nuclei = nuclei.only(near)
    count = len(nuclei)
    if count == 0:
        return np.zeros((size, size)), np.zeros((size, size), dtype=bool)
    owners = np.full((full, full), -1)
    owners[row[near], column[near]] = np.arange(count)
    nearest = distance_transform_edt(owners < 0, return_distances=False, return_indices=True)
    owner = owners[tuple(nearest[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])]

    # As complex numbers, pixels are turned by a product, and the powers of their direction are waves on the outline.
    y, x = np.ogrid[:size, :size]
    turned = (x + 1j * y - (nuclei.x + 1j * nuclei.y)[owner]) * (np.exp(-1j * nuclei.angle) / nuclei.radius)[owner]
    stretch = np.sqrt(nuclei.aspect)[owner]
    place = turned.real / stretch + 1j * (turned.imag * stretch)
    distance = np.abs(place)
    direction = place / (distance + 1e-9)
    waves = nuclei.irregularity * random.standard_normal((2, count)) * np.exp(2j * np.pi * random.random((2, count)))
    bulge = ((waves[0][owner] + waves[1][owner] * direction) * direction**2).real
    distance /= 1 + bulge.clip(-0.2, 0.2)
    body = (0.5 + nuclei.radius[owner] * (1 - distance) / 1.6).clip(0, 1)
    inner = 1 - nuclei.hollow[owner] * (1 - distance**2).clip(0)
    spot = 0.35 * np.exp(2j * np.pi * random.random(count))
    inner += nuclei.nucleolus[owner] * (1 - np.abs(place - spot[owner]) / 0.3).clip(0)
    return nuclei.darkness[owner] * body * inner, distance < 1
