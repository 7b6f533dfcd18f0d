from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from histolight.data.overlaps import block_hashes, find_overlaps, jpeg_luma, tile_hashes
from histolight.data.pack import Pack
from histolight.data.store import Tiles


def memory_tiles(pixels: np.ndarray, folder: Path = Path("pack")) -> Tiles:
    """Make the store of tiles that lie in memory, uint8 (N, S, S, 3), with their checksums."""
    return Tiles([pixels], np.array([zlib.crc32(tile) for tile in pixels], np.uint32), folder)


def memory_pack(pixels: np.ndarray, folder: Path = Path("pack")) -> Pack:
    """Make the pack of tiles that lie in memory, uint8 (N, S, S, 3)."""
    luma = jpeg_luma(pixels)
    hashes, blocks = tile_hashes(pixels), block_hashes(pixels)
    return Pack(
        memory_tiles(pixels, folder),
        hashes=hashes,
        lumas=tile_hashes(luma),
        contrast=pixels.mean(axis=-1).std(axis=(1, 2)).astype(np.float32),
        blocks=blocks,
        luma_blocks=block_hashes(luma),
        overlaps=find_overlaps(hashes, blocks, lambda rows: pixels[rows]),
        folder=folder,
        stored_luma=None,
    )
