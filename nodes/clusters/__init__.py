"""Clusters: nodes with one Ray over them. Their life is in `stories`, what its steps do in `steps`."""
