"""Whole slides: no tiles of their own; ``histolight.slides`` cuts and scores them, and nothing trains on them."""

from __future__ import annotations

from histolight.data.sources import Kind

KIND = Kind(load=None, unlabelled_apart=True, whole_slides=True)
