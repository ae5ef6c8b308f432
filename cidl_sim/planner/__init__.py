"""Bounds and evaluated plans."""
