"""Axes and images: what figures are drawn with."""
