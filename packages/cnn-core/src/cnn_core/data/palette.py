"""One palette for the classes of masks: contact sheets, predicted masks and all figures use it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

__all__ = ["IGNORED_COLOUR", "background_class", "class_colours"]

Colour = tuple[int, int, int]

# The first six can be told apart by colour-blind readers, and from the outcomes in figures of
# masks: M. Okabe and K. Ito (2008), and P. Tol (2021). Each of the others is as far as possible
# from those before it: any two differ by at least 26 in CIE L*a*b*.
COLOURS = (
    *("#e69f00", "#0072b2", "#f0e442", "#aa4499", "#44aa99", "#999933", "#00ff00", "#ff0000"),
    *("#800000", "#000075", "#fb9a99", "#7f7fff", "#f032e6", "#3cb44b", "#e6beff", "#aaffc3"),
    *("#e6194b", "#9a6324", "#88ccee", "#d55e00", "#bcf60c", "#911eb4", "#117733", "#ffd8b1"),
    *("#46f0f0", "#cc79a7"),
)
BACKGROUND: Colour = (0, 0, 0)
IGNORED_COLOUR: Colour = (128, 128, 128)
GOLDEN = 0.618034  # multiples of the golden ratio, modulo 1, spread any number of hues evenly
BACKGROUND_NAMES = ("background", "bg", "backgr", "back ground", "ground", "void")


def background_class(classes: Sequence[str], declared: str = "") -> int | None:
    """Return the class that is background, or None: the declared one, else by its name.

    Of two classes without such a name, it is the first: masks of two values mark one thing.
    """
    if declared in classes:
        return list(classes).index(declared)
    plain = [name.replace("_", " ").replace("-", " ").strip().casefold() for name in classes]
    named = [number for number, name in enumerate(plain) if name in BACKGROUND_NAMES]
    if named:
        return named[0]
    return 0 if len(classes) == 2 else None


def class_colours(
    classes: Sequence[str], colours: Sequence[str] = (), background: int | None = None
) -> list[Colour]:
    """Return an RGB colour, 0 to 255, for each class; black for the background.

    `colours` are "#rrggbb" for some classes, or "", as in a `DatasetSpec`.
    """
    given = [*colours, *[""] * len(classes)]
    numbers = iter(range(len(classes)))  # colours go to the classes that are not background
    found = []
    for number in range(len(classes)):
        own = None if number == background else next(numbers)
        if given[number]:
            found.append(_rgb(given[number]))
        else:
            found.append(BACKGROUND if own is None else _palette(own))
    return found


def _palette(number: int) -> Colour:
    if number < len(COLOURS):
        return _rgb(COLOURS[number])
    turn = number - len(COLOURS)
    value = (0.95, 0.75, 0.55)[turn % 3]
    red, green, blue = colorsys.hsv_to_rgb(turn * GOLDEN % 1, 0.65, value)
    return int(255 * red), int(255 * green), int(255 * blue)


def _rgb(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
