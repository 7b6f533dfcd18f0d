"""Procedural tiles in the manner of H&E: nothing to download, and a task that is neither trivial nor hopeless.

A tile is a function of its slide and its number alone. Haematoxylin and eosin are painted as amounts of stain, which
become light by Beer and Lambert's law. Slides differ in stains, light, sharpness and cells, so that a random split
flatters here as it does on real tiles.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, gaussian_filter

from histolight.config.schema import CENTRE, DataConfig
from histolight.data.sources import Kind
from histolight.data.table import Source, fingerprint

SLIDES = 20
TILES_PER_SLIDE = 100

_SEED = 20181122
_TOGETHER = 25  # tiles drawn at once: enough for NumPy to work without Python's lock, and few enough for the cache
_MARGIN = 12  # pixels around the tile where nuclei lie too: the tile is cut out of something larger

# Optical densities of haematoxylin and eosin in red, green and blue, as Ruifrok & Johnston (2001) and as Macenko et al.
# (2009) found them. The stains of a slide lie somewhere between.
_RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
_MACENKO = np.array([[0.563, 0.720, 0.406], [0.216, 0.801, 0.558]])


@dataclass(frozen=True)
class SyntheticSlide:
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
        return _Nuclei(*(values[chosen] for values in vars(self).values()))

    @staticmethod
    def joined(parts: Sequence[_Nuclei]) -> _Nuclei:
        return _Nuclei(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


_NOWHERE = _Nuclei(*(np.full(1, value) for value in (1e6, 1e6, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)))


def load(config: DataConfig) -> Source:
    """List the tiles of all slides. ``data.seed`` has no influence on their pixels or labels."""
    rows = [
        (f"{slide.name}_{index:04d}", slide.labels[index], slide.name)
        for slide in map(make_slide, range(SLIDES))
        for index in range(TILES_PER_SLIDE)
    ]
    table = pd.DataFrame(rows, columns=["id", "label", "group"]).astype({"label": np.int8})
    table["domain"] = table["group"].map(_centres())
    table["split"] = pd.Series([None] * len(table), dtype=object)
    table["row"] = np.arange(len(table), dtype=np.int64)

    def read_tile(row: int) -> np.ndarray:
        number, index = divmod(row, TILES_PER_SLIDE)
        return draw_tiles(number, [index], config.image_size)[0][0]

    def read_tiles(rows: range) -> np.ndarray:
        numbers, indices = np.divmod(rows, TILES_PER_SLIDE)
        ends = np.flatnonzero((np.diff(numbers) != 0) | (np.diff(indices // _TOGETHER) != 0)) + 1
        runs = zip(np.split(numbers, ends), np.split(indices, ends), strict=True)
        return np.concatenate(
            [draw_tiles(int(slide[0]), tiles.tolist(), config.image_size)[0] for slide, tiles in runs]
        )

    # One tile of each slide stands for all: what changes the pixels (this module, NumPy's generators) changes these.
    probes = ((read_tile(number * TILES_PER_SLIDE).tobytes(),) for number in range(SLIDES))
    identity = fingerprint("synthetic", config.image_size, probes)
    return Source(table, "synthetic", identity, read_tile, read_tiles=read_tiles)


def _centres() -> dict[str, str]:
    """Give five slides each to one of four centres, which differ in how much red their haematoxylin absorbs."""
    slides = sorted(map(make_slide, range(SLIDES)), key=lambda slide: float(slide.stains[0, 0]))
    return {slide.name: f"centre_{place * 4 // SLIDES}" for place, slide in enumerate(slides)}


@functools.cache
def make_slide(number: int) -> SyntheticSlide:
    """Draw the properties of slide ``number``, 0 to SLIDES - 1."""
    random = _generator(number)
    stains = _RUIFROK + random.uniform(0, 1) * (_MACENKO - _RUIFROK) + random.normal(0, 0.04, (2, 3))
    stains = stains.clip(0.02)
    return SyntheticSlide(
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


def draw_tiles(number: int, indices: Sequence[int], image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw n tiles of a slide. Thread-safe, and a tile is the same whenever and beside whichever it is drawn.

    The label is 1 exactly when a nucleus of a tumour cell reaches into the centre square. Of the other tiles, about
    half have tumour in the ring around it.

    Args:
        number: Number of the slide, 0 to SLIDES - 1.
        indices: Numbers of the tiles on their slide, 0 to TILES_PER_SLIDE - 1.
        image_size: Height and width S in pixels, at least 32: more or less tissue at the same scale.

    Returns:
        The pixels, uint8 (n, S, S, 3), and where the nuclei of tumour cells lie, bool (n, S, S).
    """
    slide, randoms = make_slide(number), [_generator(number, index) for index in indices]
    leaning = _column([random.normal(slide.stroma, 0.7) for random in randoms])
    stroma = 1 / (1 + np.exp(-2.5 * (_fields(randoms, image_size, 30) + leaning)))
    gaps = 4 * (_fields(randoms, image_size, 10) - _uniform(randoms, 0.9, 3.5)) + 0.5
    gaps = gaps.clip(0, 1)
    tumour = [
        _tumour_nuclei(random, slide, image_size, bool(slide.labels[index]))
        for random, index in zip(randoms, indices, strict=True)
    ]
    benign = [
        _benign_nuclei(random, slide, image_size, *tissue)
        for random, *tissue in zip(randoms, stroma, gaps, tumour, strict=True)
    ]
    density, tumour_mask, nuclear_mask = _paint(randoms, tumour, benign, image_size)

    tissue = 1 - gaps
    cytoplasm = gaussian_filter(tumour_mask.astype(np.float32), (0, 3.5, 3.5), truncate=2.5)
    eosin = (0.35 + 0.65 * stroma) * (0.8 + 0.15 * _fields(randoms, image_size, 5))
    eosin += 0.15 * stroma * _fibres(randoms, image_size) + 0.25 * cytoplasm
    eosin *= tissue * (1 + 2 * gaps)  # a membrane lines each gap
    eosin *= 1 - np.float32(0.5) * nuclear_mask
    haze = (0.16 - 0.08 * stroma + 0.03 * _fields(randoms, image_size, 3) + 0.1 * cytoplasm) * tissue
    density *= 1 + 0.2 * _noise(randoms, image_size, image_size)  # chromatin

    amounts = np.stack([np.maximum(haze, density), eosin]).clip(0)
    amounts *= np.float32(slide.amounts).reshape(2, 1, 1, 1) * np.stack([_uniform(randoms, 0.9, 1.1) for _ in range(2)])
    light = transmit(amounts, slide.stains, slide.glass).swapaxes(0, 1)
    widths = [slide.blur + random.uniform(0, 0.3) for random in randoms]
    blurred = [
        gaussian_filter(of_tile, (0, width, width), truncate=3) for of_tile, width in zip(light, widths, strict=True)
    ]
    light = np.stack(blurred) + 0.012 * _noise(randoms, 3, image_size, image_size)
    pixels = np.rint(255 * light.clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 1, -1)), tumour_mask


def transmit(amounts: np.ndarray, stains: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Let light through stained tissue (Beer and Lambert): ``glass * 10 ** -(stains.T @ amounts)``.

    Args:
        amounts: float (2, ...), at least 0: units of haematoxylin and of eosin.
        stains: float (2, 3): optical density of one unit of each in red, green and blue.
        glass: float (3,): light that passes without tissue, 0 to 1.

    Returns:
        float (3, ...) of the type of ``amounts``, 0 to ``glass``.

    >>> transmit(np.array([0.0, 1.0]), np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.ones(3)).round(9).tolist()
    [1.0, 0.1, 1.0]
    """
    tail = (1,) * (amounts.ndim - 1)
    haematoxylin, eosin = (-np.log(10) * stains).astype(amounts.dtype).reshape(2, 3, *tail)
    return glass.astype(amounts.dtype).reshape(3, *tail) * np.exp(haematoxylin * amounts[0] + eosin * amounts[1])


def smooth_noise(random: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Draw a Gaussian random field, float32 (size, size): mean 0, variance 1, smooth over ``scale`` pixels."""
    weights = _bumps(size, scale)
    return weights @ random.standard_normal((weights.shape[1], weights.shape[1]), np.float32) @ weights.T


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(_SEED, spawn_key=key))


@functools.cache
def _bumps(size: int, scale: float) -> np.ndarray:
    """Weights of Gaussian bumps ``scale`` pixels apart in each of ``size`` pixels; a row's squares add up to 1."""
    knots = np.arange(-3 * scale, size + 3 * scale, scale)
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] - knots) / scale) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _fields(randoms: Sequence[np.random.Generator], size: int, scale: float) -> np.ndarray:
    return np.stack([smooth_noise(random, size, scale) for random in randoms])


def _noise(randoms: Sequence[np.random.Generator], *shape: int) -> np.ndarray:
    """Draw nearly Gaussian noise, float32 (n, *shape), mean 0, variance 1: of 32 coins the heads, fast to count."""
    coins = (np.frombuffer(random.bytes(4 * math.prod(shape)), np.uint32).reshape(shape) for random in randoms)
    heads = np.stack([np.bitwise_count(each) for each in coins]).astype(np.float32)
    heads -= 16
    heads *= 8**-0.5
    return heads


def _uniform(randoms: Sequence[np.random.Generator], low: float, high: float) -> np.ndarray:
    return _column([random.uniform(low, high) for random in randoms])


def _column(values: Sequence[float]) -> np.ndarray:
    """Shape one number for each tile as float32 (n, 1, 1)."""
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1)


def _fibres(randoms: Sequence[np.random.Generator], size: int) -> np.ndarray:
    """Draw wavy collagen, -1 to 1."""
    angle, frequency = _uniform(randoms, 0, np.pi), _uniform(randoms, 0.4, 0.9)
    steps = np.arange(size, dtype=np.float32)
    phase = (steps * np.cos(angle) + steps[:, None] * np.sin(angle)) * frequency
    return np.sin(phase + 4 * _fields(randoms, size, 12)) * _fields(randoms, size, 6)


def _scatter(random: np.random.Generator, size: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Scatter points over the tile and its margin, about ``spacing`` apart: a jittered grid of triangles."""
    steps = np.arange(-_MARGIN, size + _MARGIN, spacing)
    x, y = np.meshgrid(steps, steps)
    x[::2] += spacing / 2
    jitter = random.uniform(-spacing / 3, spacing / 3, (2, *x.shape))
    return (x + jitter[0]).ravel(), (y + jitter[1]).ravel()


def _benign_nuclei(
    random: np.random.Generator, slide: SyntheticSlide, size: int, stroma: np.ndarray, gaps: np.ndarray, tumour: _Nuclei
) -> _Nuclei:
    """Place crowded lymphocytes where there is little stroma, and few, spindle-shaped nuclei where there is much."""
    x, y = _scatter(random, size, 2.35 * slide.radius)
    pixel = np.rint(y).clip(0, size - 1).astype(int), np.rint(x).clip(0, size - 1).astype(int)
    keep = random.random(len(x)) < (0.95 - 0.8 * stroma[pixel]) * (1 - gaps[pixel])
    square = (x[:, None] - tumour.x) ** 2 + (y[:, None] - tumour.y) ** 2
    apart = square > (tumour.radius + 0.8 * slide.radius) ** 2
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


def _tumour_nuclei(random: np.random.Generator, slide: SyntheticSlide, size: int, in_centre: bool) -> _Nuclei:
    """Place a nest of tumour cells that reaches into the centre; or else one beside it, or none."""
    atypia = random.uniform(0.1, 1)  # how much they differ from lymphocytes in size, shape, paleness and nucleoli
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


def _paint(
    randoms: Sequence[np.random.Generator], tumour: Sequence[_Nuclei], benign: Sequence[_Nuclei], size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint nuclei, each only where it is the nearest: crowded ones flatten one another.

    Returns:
        The haematoxylin in them, float32 (n, S, S), and where those of tumour and any lie, both bool (n, S, S).
    """
    nuclei = _Nuclei.joined([part for pair in zip(tumour, benign, strict=True) for part in pair] + [_NOWHERE])
    counts = np.array([[len(part) for part in pair] for pair in zip(tumour, benign, strict=True)])
    is_tumour = np.append(np.repeat(np.arange(counts.size) % 2 == 0, counts.ravel()), False)
    firsts = np.append(0, counts.sum(axis=1).cumsum())
    owner = np.stack([_nearest(nuclei, range(*ends), size) for ends in itertools.pairwise(firsts)])

    def of_owner(values: np.ndarray) -> np.ndarray:
        return values.astype(np.complex64 if np.iscomplexobj(values) else np.float32).take(owner)

    def drawn(draw: Callable[[np.random.Generator, int], np.ndarray]) -> np.ndarray:
        values = [draw(*each) for each in zip(randoms, counts.sum(axis=1), strict=True)]
        return np.concatenate([*values, np.zeros_like(values[0], shape=(1, *values[0].shape[1:]))])

    # As complex numbers, pixels are turned by a product, and the powers of their direction are waves on the outline.
    x = np.arange(size, dtype=np.float32)
    place = x + 1j * x[:, None] - of_owner(nuclei.x + 1j * nuclei.y)
    place *= of_owner(np.exp(-1j * nuclei.angle) / nuclei.radius)
    stretch = of_owner(np.sqrt(nuclei.aspect))
    place.real /= stretch
    place.imag *= stretch
    distance = np.abs(place)
    direction = place * (1 / (distance + np.float32(1e-9)))
    height = drawn(lambda random, count: random.standard_normal((count, 2))) * nuclei.irregularity[:, None]
    waves = height * np.exp(2j * np.pi * drawn(lambda random, count: random.random((count, 2))))
    bulge = ((of_owner(waves[:, 0]) + of_owner(waves[:, 1]) * direction) * direction * direction).real
    distance /= 1 + bulge.clip(-0.2, 0.2)
    body = (0.5 + of_owner(nuclei.radius / 1.6) * (1 - distance)).clip(0, 1)
    inner = 1 - of_owner(nuclei.hollow) * (1 - distance * distance).clip(0)
    spot = 0.35 * np.exp(2j * np.pi * drawn(lambda random, count: random.random(count)))
    inner += of_owner(nuclei.nucleolus) * (1 - np.abs(place - of_owner(spot)) / np.float32(0.3)).clip(0)
    inside = distance < 1
    return of_owner(nuclei.darkness) * body * inner, inside & is_tumour.take(owner), inside


def _nearest(nuclei: _Nuclei, places: range, size: int) -> np.ndarray:
    """Find the nearest of the nuclei at ``places`` for each pixel, int (size, size); -1 where there is none."""
    full = size + 2 * _MARGIN
    here = slice(places.start, places.stop)
    row, column = (np.rint(line[here]).astype(int) + _MARGIN for line in (nuclei.y, nuclei.x))
    near = (row >= 0) & (row < full) & (column >= 0) & (column < full)
    if not near.any():
        return np.full((size, size), -1)
    owners = np.full((full, full), -1)
    owners[row[near], column[near]] = np.array(places)[near]
    nearest = distance_transform_edt(owners < 0, return_distances=False, return_indices=True)
    return owners[tuple(nearest[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])]


KIND = Kind(load, needs_root=False, artificial=True)
