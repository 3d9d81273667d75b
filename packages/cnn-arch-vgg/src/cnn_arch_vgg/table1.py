"""Table 1 of Simonyan and Zisserman (2014) as data, for the networks and their key maps.

A column gives the number of 3x3 convolutions in each of the five stages. This is a separate
file because the key maps must not import torch.
"""

from __future__ import annotations

__all__ = ["TABLE_1"]

# fmt: off
TABLE_1 = {
    "A": (1, 1, 2, 2, 2),  # 11 weight layers, the three fully connected ones included
    "B": (2, 2, 2, 2, 2),  # 13
    "D": (2, 2, 3, 3, 3),  # 16
    "E": (2, 2, 4, 4, 4),  # 19
}
# fmt: on
