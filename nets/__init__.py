"""Samples to predictions: segmentation network, discriminator, EMA copy, projection head and weight files."""
