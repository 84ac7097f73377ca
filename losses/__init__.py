"""Losses of the localiser: pure functions of tensors; only `losses.stac` knows their weights."""
