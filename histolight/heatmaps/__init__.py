"""Whole slides scored tile by tile: the scores as files on the slide, its pictures, and the page over all slides."""
