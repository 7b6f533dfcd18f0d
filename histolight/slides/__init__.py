"""Whole slides: read, find the tissue, score it tile by tile, and put the scores back on the slide."""
