"""Names of parameters, there and back."""

from __future__ import annotations

import pytest

from cnn_core.weights.keymap import KeyMap

MAP = KeyMap(("stem.0", "conv1"), ("stage{s}.{b}.f.conv1", "layer{s}.{b}.conv1"), ("fc", "fc"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stem.0.weight", "conv1.weight"),
        ("stage1.10.f.conv1.bias", "layer1.10.conv1.bias"),
        ("fc.weight", "fc.weight"),
    ],
)
def test_keys_are_renamed_both_ways(ours, theirs):
    assert MAP.theirs(ours) == theirs
    assert MAP.ours(theirs) == ours
    assert MAP.to_ours(MAP.to_theirs({ours: 1})) == {ours: 1}


@pytest.mark.parametrize("key", ["conv10.weight", "stem.01.weight", "layerx.1.conv1.weight"])
def test_a_key_that_nothing_fits_raises(key):
    with pytest.raises(KeyError, match=key):
        MAP.ours(key)
