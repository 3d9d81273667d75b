"""Classes whose names begin with an underscore are in every legend."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cnn_viz
from cnn_core.training import Predictions
from cnn_viz import style
from cnn_viz.views import embedding, masks, rankings

NAMES = ("_other", "__init__", "cat", "_")


def shown(legend):
    return {text.get_text().partition(",")[0].strip(style.LTR_MARK) for text in legend.get_texts()}


def drawn():
    """A figure and its axes, in the style of the views."""
    figure = style.figure(6, 4, "title", "caption")
    return figure, figure.subplots()


def test_rankings_have_all_classes():
    targets = torch.arange(40) % 4
    logits = torch.nn.functional.one_hot(targets, 4) + torch.rand(40, 4)
    found = Predictions(
        torch.zeros(40, 1, 8, 8, dtype=torch.uint8), logits.float(), targets, NAMES
    )
    trained = SimpleNamespace(path=Path("r"), recipe=SimpleNamespace(model="m", data="d"))
    with style.applied():
        figure = rankings.rankings(trained, found)
        figure.draw_without_rendering()
    for ax in figure.axes:
        assert shown(ax.get_legend()) == {*NAMES, "mean of all"}


def test_legends_of_points_and_of_masks_have_all_classes():
    with style.applied():
        figure, _ = drawn()
        embedding._legend(figure, NAMES)
        figure.draw_without_rendering()
        assert shown(figure.legends[0]) == set(NAMES)
        figure = style.figure(6, 4, "title", "caption")
        axes = figure.subplots(1, 2)
        masks._legends(axes, NAMES, range(4))
        figure.draw_without_rendering()
    assert set(NAMES) <= shown(axes[0].get_legend()) | shown(axes[1].get_legend())


@pytest.mark.parametrize("name", ["cat", "a_b", ""])
def test_other_labels_are_as_before(name):
    assert style.label(name) == style.short(name)


def test_no_label_is_a_name_of_a_class_as_it_is():
    """A label is written as `style.label(…)`, or begins with words of our own."""
    for path in Path(cnn_viz.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "label":
                assert "style.short(" not in ast.unparse(node.value), path
