"""Readers of datasets: one module for each dataset or file format."""
