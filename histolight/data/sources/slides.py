"""Whole slides: only to predict; their tiles are cut while they are predicted."""

from __future__ import annotations

from histolight.data.sources import Kind

KIND = Kind(load=None, unlabelled_apart=True)
