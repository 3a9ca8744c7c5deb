"""Grids of coloured cells, as in ARC (arXiv 1911.01547): their text, their augmentations, and votes over them."""
