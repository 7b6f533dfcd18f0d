"""Whole slides: read, find the tissue, lay the tiles, read what people annotated."""
