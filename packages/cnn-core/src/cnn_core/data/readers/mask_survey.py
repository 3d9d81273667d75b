"""Survey what all masks of a dataset hold, and refuse what is blurred or mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cnn_core.data.mask_image import MaskFacts, hexadecimal, mask_facts
from cnn_core.data.readers.description import FILE, Description
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted

__all__ = [
    "SHOWN",
    "Survey",
    "WHITE",
    "advice",
    "different_palettes",
    "require_classes",
    "require_edges",
    "require_lossless",
    "require_one_kind",
    "require_sharp",
    "require_unmixed",
    "require_wide",
    "survey",
]

SHOWN = 8  # values or colours that a message lists
WHITE = 255
TWO_PEAKS = 0.6  # of all pixels: with less, two values are no sign of two classes
MANY = 64  # values; with more, they are not classes
# Of the edges between classes whose numbers differ by 2 or more, the share that are ramps: at most
# 1 % in masks of 3 to 20 classes as they were drawn, and 30 % to 100 % in the same masks resized
# bilinearly or saved as JPEG.
RAMPS = 0.2
MIN_RAMPS = 20
MAX_EDGES = 200  # masks whose edges are looked at, evenly spaced
NUMBERED = 0.9  # share of masks, and of their values, that must look like numbers of objects
MIN_HIGHEST = 3  # different highest values of masks; an organ with or without a tumour has two
STRAYS = 0.2  # of the pixels of 255; values with fewer are stray pixels
SPECKS = 0.05  # share of all pixels; more cannot be a by-product of resizing or JPEG


@dataclass
class Survey:
    """What all masks hold: pixels by value, files by value, and the first file of each."""

    root: Path
    masks: list[MaskFacts] = field(default_factory=list)
    pixels: dict[int, int] = field(default_factory=dict)
    first: dict[int, Path] = field(default_factory=dict)
    errors: list[DatasetCorruptError] = field(default_factory=list)

    @property
    def in_colour(self) -> bool:
        """Whether most masks are in colour."""
        return 2 * sum(mask.kind == "colour" for mask in self.masks) >= max(len(self.masks), 1)

    @property
    def where(self) -> str:
        """The folder that messages name."""
        return str(self.masks[0].path.parent if self.masks else self.root)

    def add(self, facts: MaskFacts) -> None:
        """Add a mask."""
        self.masks.append(facts)
        for value, count in facts.counts.items():
            self.pixels[value] = self.pixels.get(value, 0) + count
            self.first.setdefault(value, facts.path)

    def listed(self, values: Iterable[int] | None = None, in_colour: bool = False) -> str:
        """Return values with their shares of all pixels, the most frequent first."""
        total = max(sum(self.pixels.values()), 1)
        chosen = sorted(self.pixels if values is None else values, key=lambda v: -self.pixels[v])
        parts = [
            f"{hexadecimal(v) if in_colour else v} ({100 * self.pixels[v] / total:.3g} %)"
            for v in chosen[:SHOWN]
        ]
        more = f" and {len(chosen) - SHOWN:,} more" if len(chosen) > SHOWN else ""
        return f"{', '.join(parts)}{more}"

    def thin(self, values: Iterable[int]) -> list[int]:
        """Return the values that fill no square of 2 x 2 pixels in any mask."""
        filled = {value for mask in self.masks for value in mask.filled}
        return sorted(value for value in values if value not in filled)

    def share(self, values: Iterable[int]) -> float:
        """Return the share of all pixels that have these values."""
        return sum(self.pixels[value] for value in values) / max(sum(self.pixels.values()), 1)

    @property
    def is_blurred(self) -> bool:
        """Whether edges are ramps through the numbers of other classes."""
        thin = set(self.thin(self.pixels))
        ramps = sum(
            count
            for mask in self.masks
            for value, count in mask.ramps.items()
            if value not in thin
        )
        jumps = sum(mask.jumps for mask in self.masks)
        return ramps >= MIN_RAMPS and ramps > RAMPS * (ramps + jumps)


def survey(root: Path, masks: Sequence[Path], in_colour: bool = False) -> Survey:
    """Read all masks and return what they hold, with `in_colour` by colour.

    Masks that cannot be read are left to the decoder, which names each of them.
    """
    found = Survey(root)
    step = -(-len(masks) // MAX_EDGES)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for facts in pool.map(_facts, masks, (n % step == 0 for n in range(len(masks)))):
            if isinstance(facts, MaskFacts):
                found.add(facts)
            else:
                found.errors.append(facts)
    if in_colour or found.in_colour:
        coloured = Survey(root, errors=found.errors)
        for facts in found.masks:
            coloured.add(_by_colour(facts))
        return coloured
    return found


def _facts(path: Path, edges: bool) -> MaskFacts | DatasetCorruptError:
    try:
        return mask_facts(path, edges)
    except DatasetCorruptError as error:
        return error


def _by_colour(facts: MaskFacts) -> MaskFacts:
    """Return the facts of a grey or palette mask by colour."""
    if facts.kind == "colour":
        return facts
    grey = {value: value * 0x010101 for value in facts.counts}
    colours = facts.palette if facts.kind == "palette" else grey
    counts: dict[int, int] = {}
    for value, count in facts.counts.items():
        counts[colours[value]] = counts.get(colours[value], 0) + count
    filled = frozenset(colours[value] for value in facts.filled)
    rim = colours[facts.rim]
    return dataclasses.replace(facts, kind="colour", counts=counts, filled=filled, rim=rim)


def require_lossless(found: Survey, description: Description) -> None:
    """Raise DatasetCorruptError for masks in a lossy format, unless they hold black and white."""
    lossy = [mask for mask in found.masks if mask.lossy]
    exact = not found.in_colour and set(found.pixels) <= {0, WHITE}
    if not lossy or exact or description.threshold:
        return
    mask = max(lossy, key=lambda mask: len(mask.counts))
    only = Survey(found.root)
    only.add(mask)
    raise DatasetCorruptError(
        f"{mask.path}: {mask.lossy} is lossy and has changed this mask: it holds "
        f"{len(mask.counts):,} values: {only.listed(in_colour=mask.kind == 'colour')} "
        f"({counted(len(lossy), 'such mask')})",
        "export the masks as PNG from their source: a converted JPEG stays blurred"
        f"{_halfway(found)}",
    )


def _halfway(found: Survey) -> str:
    """Return how to read blurred masks of two classes, if two values have most of the pixels."""
    common = sorted(sorted(found.pixels, key=lambda v: -found.pixels[v])[:2])
    share = sum(found.pixels[v] for v in common) / sum(found.pixels.values())
    if found.in_colour or len(common) < 2 or share < TWO_PEAKS:
        return ""
    halfway = (common[0] + common[1] + 1) // 2
    return f"\nor, if there are two classes, in {found.root / FILE}: threshold = {halfway}"


def advice(found: Survey) -> str:
    """Return what to do if values of masks have no obvious meaning."""
    return (
        f"name each value in {found.root / FILE} (cnnzoo describe-data maskfolder:{found.root} "
        "writes a draft), or the classes 0, 1, … in classes.txt"
    )


def require_classes(found: Survey) -> None:
    """Raise DatasetCorruptError for numbers of objects: 1 to n, one blob each, n varies."""
    looked_at = [mask for mask in found.masks if mask.whole and mask.kind != "colour"]
    objects = [sorted(mask.counts.keys() - {0, WHITE}) for mask in looked_at]
    # A mask with a single object proves nothing, so masks must differ in their highest value.
    gapless = sum(values == [*range(1, len(values) + 1)] for values in objects)
    blobs = sum(len(mask.whole & {*v}) for mask, v in zip(looked_at, objects, strict=True))
    highest = {len(values) for values in objects if values}
    enough = len(highest) >= MIN_HIGHEST and gapless >= NUMBERED * len(objects)
    if not enough or blobs < NUMBERED * sum(map(len, objects)):
        return
    raise DatasetCorruptError(
        f"{found.where}: these look like numbers of objects, not classes: masks hold 1 to "
        f"{min(highest)} up to 1 to {max(highest)}, and each value is one connected blob",
        f"to tell objects from background: threshold = 1 in {found.root / FILE} (cnnzoo "
        f"describe-data maskfolder:{found.root} --threshold 1)\n"
        "if they are classes, name 0, 1, … in classes.txt, one a line",
    )


def require_sharp(found: Survey, kept: Sequence[int]) -> None:
    """Raise DatasetCorruptError if most values are nowhere two pixels wide, as blurred edges."""
    thin = found.thin(kept)
    if len(kept) <= 3 or (2 * len(thin) < len(kept) and len(kept) <= MANY):
        return
    colour = found.in_colour
    raise DatasetCorruptError(
        f"{found.where}: masks have {len(kept):,} {'colours' if colour else 'values'}, "
        f"{found.listed(kept, colour)}; {len(thin):,} of them are nowhere two pixels wide: they "
        "look blurred, as by resizing, anti-aliasing or JPEG",
        f"export them anew without it{_halfway(found)}",
    )


def require_edges(found: Survey) -> None:
    """Raise DatasetCorruptError if edges between classes are ramps through other classes."""
    if not found.in_colour and found.is_blurred:
        raise DatasetCorruptError(
            f"{found.where}: edges between classes run through the numbers between them, as where "
            "masks were resized, anti-aliased or once saved as JPEG: pixels at edges are of wrong "
            "classes",
            "export the masks anew, resized with nearest neighbour if at all\n"
            f"if they are right, give each value its name in {found.root / FILE}",
        )


def require_wide(found: Survey, kept: Sequence[int]) -> None:
    """Raise DatasetCorruptError if some classes without names are only specks and thin lines."""
    thin = found.thin(kept)
    if not thin or found.share(thin) > SPECKS:
        return
    raise DatasetCorruptError(
        f"{found.where}: {found.listed(thin)} of the pixels: nowhere two pixels wide, as where "
        "masks were resized, anti-aliased or once saved as JPEG",
        f"export the masks anew{_halfway(found)}\nif these are classes: cnnzoo describe-data "
        f"maskfolder:{found.root} --classes FILE, with a name for each value",
    )


def require_one_kind(found: Survey) -> None:
    """Raise DatasetCorruptError for one mask in colour among others, or for differing palettes."""
    for mask in found.masks:
        if mask.kind == "colour":
            count = sum(m.kind == "colour" for m in found.masks)
            only, of = Survey(found.root), f"of {len(found.masks):,} masks"
            only.add(mask)
            raise DatasetCorruptError(
                f"{mask.path}: a mask in colour: {only.listed(in_colour=True)}; "
                f"{counted(count, f'{of} is', f'{of} are')}, the others hold numbers",
                "save it like the others, as grey or with a palette",
            )
    if unlike := different_palettes(found):
        raise DatasetCorruptError(
            f"{unlike}: are numbers or colours the classes?",
            f"{found.root / FILE} decides: [labels] by number, or by colour as "
            f"cnnzoo describe-data maskfolder:{found.root} --colours writes them",
        )


def different_palettes(found: Survey) -> str:
    """Return where a number that masks hold has another colour than elsewhere, or ""."""
    colours: dict[int, tuple[int, Path]] = {}
    for mask in found.masks:
        for index, colour in mask.palette.items():
            other, path = colours.setdefault(index, (colour, mask.path))
            if other != colour:
                return (
                    f"{mask.path}: palette entry {index} is {hexadecimal(colour)}, but "
                    f"{hexadecimal(other)} in {path}"
                )
    return ""


def require_unmixed(found: Survey, kept: Sequence[int]) -> None:
    """Raise DatasetCorruptError if 255, which would be ignored, may be a class: the objects.

    As in masks of 0/1 mixed with 0/255, and in masks of 0/255 with some stray pixels.
    """
    if found.in_colour or WHITE not in found.pixels or WHITE in kept:
        return
    white = [mask for mask in found.masks if WHITE in mask.counts]
    plain = [mask for mask in white if mask.counts.keys() <= {0, WHITE}]
    between = [value for value in kept if value in found.pixels and value != 0]
    share, ignored = found.share(between), found.share([WHITE])
    if 2 * len(plain) < len(white) and ignored < share:
        return  # beside other classes, 255 is what it is in most datasets: ignored
    stray = share < STRAYS * ignored
    problem = (
        f"255 covers {100 * ignored:.3g} % of the pixels, and all classes but 0 only "
        f"{100 * share:.3g} %: is 255 a class, or ignored?"
    )
    mask = white[0]
    if plain:
        mask = plain[0]
        other = next((m for m in found.masks if m.counts.keys() & set(between)), mask)
        problem = (
            f"holds 255 and no class but 0 ({counted(len(plain), 'such mask')}), while "
            f"{other.path} has {', '.join(map(str, sorted(other.counts)))}: two kinds of masks?"
        )
    describe = f"cnnzoo describe-data maskfolder:{found.root}"
    a_class = f"threshold = 128 ({describe} --threshold 128)"
    if not stray:
        a_class = "[labels] there, with the same name for values of one class"
    raise DatasetCorruptError(
        f"{mask.path}: {problem}",
        f"if 255 is ignored, in {found.root / FILE}: ignore = [255] ({describe} --ignore 255)\n"
        f"if it is a class: {a_class}",
    )
