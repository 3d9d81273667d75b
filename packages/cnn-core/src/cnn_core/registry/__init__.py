"""Look up plugins' specs by name. Imports plugins/, but not torch."""

from cnn_core.registry.catalogue import (
    Catalogue,
    Entry,
    catalogues,
    checks,
    commands,
    datasets,
    get_spec,
    list_models,
    metrics,
    models,
    origin,
    recipes,
    resolve,
    views,
    weights,
)

__all__ = [
    "Catalogue",
    "Entry",
    "catalogues",
    "checks",
    "commands",
    "datasets",
    "get_spec",
    "list_models",
    "metrics",
    "models",
    "origin",
    "recipes",
    "resolve",
    "views",
    "weights",
]
