"""Find images and their masks in folders of many layouts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnn_core.data.headers import image_facts
from cnn_core.data.readers.description import FILE, Description
from cnn_core.data.readers.layout import folders_in, split_folders
from cnn_core.data.readers.listing import (
    OBJECTS,
    UNMASKED,
    UNUSED,
    LeftOut,
    sorted_files,
    subfolders,
)
from cnn_core.data.readers.mask_names import Rule, best_rule, partner, shift_of, side_by_side
from cnn_core.data.split_names import split_of
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted, printable

__all__ = ["Layout", "NAMES", "Pairs", "find_pairs"]

Pairs = tuple[tuple[Path, ...], tuple[Path, ...]]  # images and their masks, in the same order
Source = Sequence[Path]  # image files, below one folder
NAMES = "classes.txt"  # beside the folders: the names of the classes, one per line

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "frames")
MASKS = (
    *("masks", "mask", "annotations", "annotation", "annots", "annot", "labels", "label"),
    *("segmentations", "segmentation", "segmentationclass", "segs", "seg", "groundtruth", "gt"),
)
NUMBERS = re.compile(r"\d+( [\d.]+){4}").match  # a line of YOLO: a class and its box or polygon
ORDER = ("train", "val", "test")
# Longer ones first: "segmentation" ends a name that "seg" only begins.
ROLES = ("", *sorted((*IMAGES, *MASKS), key=len, reverse=True))


@dataclass
class Layout:
    """The pairs of each split, what was left out, and lines for the user.

    `unmeasured` are folders of images without masks.
    """

    root: Path
    pairs: dict[str, Pairs] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unmeasured: list[Path] = field(default_factory=list)

    def add_rule(self, images: Path, masks: Path, rule: Rule) -> None:
        """Note how images pair with masks, unless it is the plainest layout."""
        parts = [
            f"{folder.relative_to(self.root) / f'{before}NAME{after}'}"
            for folder, (before, after) in ((images, rule.image), (masks, rule.mask))
        ]
        line = f"images {parts[0]} with masks {parts[1]}"
        if parts != ["images/NAME", "masks/NAME"] and line not in self.rules:
            self.rules.append(line)


def find_pairs(root: Path, found: Description) -> Layout:
    """Return the images and masks below `root`, by split; without folders of splits, all as train.

    Raises:
        UsageError: there are no folders of images and masks, or dataset.toml names a folder or a
            list that is not there.
        DatasetCorruptError: images and masks do not pair up by one rule.
    """
    layout = Layout(root, left_out=LeftOut(known={root / FILE}))
    if not found.labels:
        layout.left_out.known.add(root / NAMES)
    if found.images or found.masks or found.splits:
        folders = _declared(root, found, layout)
    else:
        folders = _folders(root, layout)
    for split in (split for split in ORDER if split in folders):
        layout.pairs[split] = _paired(*folders[split], layout)
    _account(root, found, layout)
    if layout.rules:
        layout.notes.insert(0, f"{root}: {'; '.join(layout.rules)}")
    return layout


def _folders(root: Path, layout: Layout) -> dict[str, tuple[Source, Source]]:
    """Return the image files and mask files of each split, by the names of folders."""
    images, masks = _called(root, IMAGES), _called(root, MASKS)
    if images and masks:
        return _by_split(images, masks, layout)
    found: dict[str, tuple[Source, Source]] = {}
    roles = _roles(root)
    for split, role in roles:
        if role != "images":
            continue
        folder = roles[split, role]
        pair = _within(folder)
        if pair is None and (split, "masks") in roles:
            pair = sorted_files(folder), sorted_files(roles[split, "masks"])
        pair = pair or side_by_side(folder)
        if pair is None and split == "train":
            raise _missing(root, folder)
        if pair is None:
            layout.unmeasured.append(folder)
        else:
            found[split] = pair
    if not found and not (images or masks) and (pair := side_by_side(root)):
        return {"train": pair}
    if "train" not in found:
        raise _missing(root, images or masks)
    return found


def _by_split(images: Path, masks: Path, layout: Layout) -> dict[str, tuple[Source, Source]]:
    """Return the files of two folders, by the folders of splits that both may have inside."""
    inside = split_folders(images)
    if inside["train"] == images:
        return {"train": (sorted_files(images), sorted_files(masks))}
    targets = split_folders(masks)
    if targets["train"] == masks:
        raise _missing(masks.parent, inside["train"])
    found: dict[str, tuple[Source, Source]] = {}
    for split, folder in inside.items():
        if split in targets:
            found[split] = sorted_files(folder), sorted_files(targets[split])
        else:
            layout.unmeasured.append(folder)
    return found


def _declared(root: Path, found: Description, layout: Layout) -> dict[str, tuple[Source, Source]]:
    """Return the files of each split as dataset.toml names folders and lists."""
    named = (found.images, IMAGES, "images"), (found.masks, MASKS, "masks")
    images, masks = (
        root / given if given else _called(root, names) or root / default
        for given, names, default in named
    )
    for key, folder in (("images", images), ("masks", masks)):
        if not folder.is_dir() and (getattr(found, key) or not found.splits):
            raise UsageError(f"{found.path}: {key}: {folder}: no such folder")
    if not found.splits:
        return _by_split(images, masks, layout)
    parts: dict[str, tuple[Source, Source]] = {}
    for split, text in found.splits.items():
        path = root / text
        if path.is_file():
            layout.left_out.known.add(path)
            parts[split] = _listed(path, images, masks)
        elif (images / text).is_dir() and (masks / text).is_dir():
            parts[split] = sorted_files(images / text), sorted_files(masks / text)
        elif path.is_dir() and (pair := _within(path) or side_by_side(path)):
            parts[split] = pair
        else:
            expected = "expected a list of names, or a folder of images and masks"
            raise UsageError(f"{found.path}: splits: {split} = '{printable(text)}': {expected}")
    return parts


def _listed(path: Path, images: Path, masks: Path) -> tuple[Source, Source]:
    """Return the images and masks that a list names, one per line, with or without suffix."""
    by_image, by_mask = _names(sorted_files(images), images), _names(sorted_files(masks), masks)
    rule = best_rule(by_image, by_mask)
    parts: tuple[list[Path], list[Path]] = ([], [])
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        # Some lists have a second column: a label, or the path of the mask.
        words = (line.strip(), line.split()[0])
        names = [name for word in words for name in (word, str(Path(word).with_suffix("")))]
        name = next((n for n in names if n in by_image), None)
        mask = None if name is None else by_mask.get(partner(rule, name, of_mask=False))
        if name is None or mask is None:
            missing = "image" if name is None else "mask"
            raise DatasetCorruptError(
                f"{path}: line {number}: '{printable(line.strip()[:60])}' has no {missing} "
                f"in {images if name is None else masks}"
            )
        parts[0].append(by_image[name])
        parts[1].append(mask)
    return parts


def _paired(images: Source, masks: Source, layout: Layout) -> Pairs:
    """Return images and masks that go together by one rule for all names."""
    _require_single(images, masks)
    for ours, theirs, missing in ((images, masks, "masks"), (masks, images, "images")):
        if ours and not theirs:
            _require_masks(layout.root)
            raise DatasetCorruptError(
                f"{_common(ours)}: {counted(len(ours), 'file')}, but the folder of {missing} has "
                "no images"
            )
    image_folder, mask_folder = _common(images), _common(masks)
    by_image, by_mask = _names(images, image_folder), _names(masks, mask_folder)
    rule = best_rule(by_image, by_mask)
    _require_merged(by_image, by_mask, mask_folder)
    partners = {name: partner(rule, name, of_mask=False) for name in by_image}
    _require_all(by_image, by_mask, rule, mask_folder, of_mask=False)
    _require_all(by_mask, by_image, rule, image_folder, of_mask=True)
    layout.add_rule(image_folder, mask_folder, rule)
    return tuple(by_image.values()), tuple(by_mask[partners[name]] for name in by_image)


def _require_merged(
    by_image: Mapping[str, Path], by_mask: Mapping[str, Path], folder: Path
) -> None:
    """Raise DatasetCorruptError for a folder of masks for each class: road/1.png, car/1.png."""
    if any("/" in name for name in by_image) or any("/" not in name for name in by_mask):
        return
    groups: dict[str, set[str]] = {}
    for name in by_mask:
        group, _, rest = name.partition("/")
        groups.setdefault(group, set()).add(rest)
    shared = [group for group, names in groups.items() if names & by_image.keys()]
    if len(shared) < 2 or len(set.union(*groups.values())) == len(by_mask):
        return
    listed = ", ".join(printable(group) for group in shared[:8])
    raise DatasetCorruptError(
        f"{folder}: an image has a mask in each of the folders {listed}: one folder per class?",
        f"merge them into one mask per image, {folder / 'NAME.png'}: 0 where nothing is, and 1, "
        f"2, … where {shared[0]}, {shared[1]}, … are",
    )


def _require_single(images: Source, masks: Source) -> None:
    """Raise DatasetCorruptError if images and masks are stacks: files of many pages."""
    if not images or not masks:
        return
    if not all(_is_stack(files[0]) for files in (images, masks)):
        return
    raise DatasetCorruptError(
        f"{images[0]}: a stack: it and {masks[0]} have several pages, and only the first is read",
        "save each page as an image and a mask of its own, for example with ImageMagick: "
        f"magick {images[0].name} {images[0].stem}_%04d.png",
    )


def _is_stack(path: Path) -> bool:
    try:
        return "pages" in image_facts(path).lost
    except DatasetCorruptError:
        return False  # broken files are reported when all are decoded


def _require_masks(root: Path) -> None:
    """Raise DatasetCorruptError for what people have instead of a mask for each image."""
    for folder in (root, *subfolders(root)):
        parts = {f: _within(f) for f in subfolders(folder) if not _role(f.name)[0]}
        inside = [f for f, pair in parts.items() if pair]
        if any(pair and len(pair[1]) > len(pair[0]) for pair in parts.values()):
            raise DatasetCorruptError(
                f"{folder}: {counted(len(inside), 'folder')}, such as "
                f"{printable(inside[0].name)}, with images and masks of their own, as in "
                "DSB2018: one mask per object",
                "make one mask per image: images/ID.png, and as masks/ID.png the pixelwise "
                f"maximum of all files in {inside[0].name}/masks",
            )
    pictures = {path.stem for path in sorted_files(root)}
    texts = sorted(p for p in root.rglob("*.txt") if p.stem in pictures and NUMBERS(_start(p)))
    if texts:
        raise DatasetCorruptError(
            f"{texts[0].parent}: holds .txt files, such as {printable(texts[0].name)}, as for "
            "YOLO: boxes or polygons are not masks",
            "draw the polygons into one mask per image, masks/NAME.png, with the number of the "
            "class + 1 and 0 for the background (PIL.ImageDraw), or export masks (PNG) from the "
            "labelling tool",
        )


def _start(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(200)


def _require_all(
    ours: Mapping[str, Path],
    theirs: Mapping[str, Path],
    rule: Rule,
    folder: Path,
    *,
    of_mask: bool,
) -> None:
    """Raise DatasetCorruptError unless every file has a partner in the other folder."""
    alone = sorted(name for name in ours if partner(rule, name, of_mask=of_mask) not in theirs)
    if not alone:
        return
    missing, of = "image" if of_mask else "mask", f"of {len(ours)}"
    way_out = "rename, or move away what has no partner"
    if shift := shift_of(ours, theirs):
        way_out = f"all numbers differ by {shift}: rename, if the first goes with the first"
    wanted = folder / f"{partner(rule, alone[0], of_mask=of_mask)}.*"
    examples = ", ".join(printable(path.name) for path in list(theirs.values())[:2])
    raise DatasetCorruptError(
        f"{ours[alone[0]]}: has no {missing} {wanted} "
        f"({counted(len(alone), f'{of} has', f'{of} have')} none)",
        f"{folder} has {examples or 'no image files'}{', …' if len(theirs) > 2 else ''}\n"
        "one rule must fit all names: equal, or one prefix or suffix, as NAME and NAME_mask; "
        f"{way_out}",
    )


def _names(files: Source, folder: Path) -> dict[str, Path]:
    """Return files by their paths below a folder, without suffix."""
    found: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DatasetCorruptError(
                f"{path}: same name as {found[name].name}",
                "names without suffix pair images with masks: move one of the two away, or give "
                "it a name of its own, and a mask of that name",
            )
        found[name] = path
    return found


def _within(folder: Path) -> tuple[Source, Source] | None:
    """Return the files of a folder of images and one of masks inside a folder."""
    images, masks = _called(folder, IMAGES), _called(folder, MASKS)
    return (sorted_files(images), sorted_files(masks)) if images and masks else None


def _roles(root: Path) -> dict[tuple[str, str], Path]:
    """Return the folders such as train, trainannot, val_masks, by split and images or masks."""
    found: dict[tuple[str, str], Path] = {}
    for folder in folders_in(root):
        split, role = _role(folder.name)
        if split and (split, role) in found:
            other = found[split, role]
            raise DatasetCorruptError(f"{folder}: {role} of {split}, as {other} has already")
        if split:
            found[split, role] = folder
    meant = "val" if ("test", "images") in found else "test"
    return {(meant if split == "eval" else split, r): f for (split, r), f in found.items()}


def _role(name: str) -> tuple[str, str]:
    """Return the split that a folder's name means, or "", and "images" or "masks"."""
    plain = _plain(name)
    for word in ROLES:
        for rest in (plain.removesuffix(word), plain.removeprefix(word)):
            split, others = split_of(rest) if rest != plain or not word else ("", "")
            if split and not others:
                return split, "masks" if word in MASKS else "images"
    return "", ""


def _called(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the folder inside that has one of these names, if there is one.

    Raises:
        DatasetCorruptError: several folders could be meant.
    """
    inside = [f for f in folders_in(folder) if _plain(f.name) in names]
    # labels/ of YOLO holds text files: only folders with images can be meant.
    if len(inside) > 1:
        inside = [f for f in inside if sorted_files(f)] or inside[:1]
    if len(inside) > 1:
        key = "images" if names == IMAGES else "masks"
        raise DatasetCorruptError(
            f"{folder}: {' and '.join(f.name for f in inside)} could both be the {key}",
            f'say which in {folder / FILE}: {key} = "{inside[0].name}"',
        )
    return inside[0] if inside else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name.lower())


def _common(files: Source) -> Path:
    """Return the deepest folder that holds all files."""
    return Path(os.path.commonpath([path.parent for path in files])) if files else Path()


def _missing(root: Path, present: Path | None) -> UsageError:
    """Return the error for folders of images or masks that are not there.

    Raises:
        DatasetCorruptError: there is something else instead, such as polygons in text files.
    """
    _require_masks(root)
    there = ", ".join(printable(f.name) for f in subfolders(root)[:8]) or "no folders"
    inside = [f for f in subfolders(root) if any(map(_within, (f, *subfolders(f))))]
    if len(inside) == 1 and not _role(inside[0].name)[0]:
        return UsageError(
            f"{root / 'images'}: no such folder; {root} has {there}",
            f"the dataset may be one folder further down: maskfolder:{inside[0]}",
        )
    lacks = "masks" if present is not None and _plain(present.name) not in MASKS else "images"
    return UsageError(
        f"{root / lacks}: no such folder; {root} has {there}",
        f"expected images/NAME.* and masks/NAME.*, train and trainannot, or in {FILE}: "
        'images = "FOLDER", masks = "FOLDER"',
    )


def _account(root: Path, found: Description, layout: Layout) -> None:
    """Count every file that is in no split, and every file that is not read."""
    used = {path for images, masks in layout.pairs.values() for path in (*images, *masks)}
    unused: dict[Path, list[Path]] = {}
    for folder in (root, *_elsewhere(root, found)):
        for path in sorted_files(folder, layout.left_out):
            if path not in used:
                of = next((f for f in layout.unmeasured if f in path.parents), path.parent)
                unused.setdefault(of, []).append(path)
    for folder, paths in sorted(unused.items()):
        if folder in layout.unmeasured:
            layout.left_out.add(UNMASKED, paths[0], len(paths))
            without = counted(
                len(paths),
                "image without a mask is left out, for nothing can be measured on it",
                "images without masks are left out, for nothing can be measured on them",
            )
            them = "it" if len(paths) == 1 else "them"
            layout.notes.append(
                f"{folder}: {without}; to predict {them}: cnnzoo predict RUN {folder}"
            )
        elif _plain(folder.name) == "segmentationobject":  # beside SegmentationClass of VOC, CVAT
            layout.left_out.add(OBJECTS, paths[0], len(paths))
        elif found.splits:  # lists often leave out most of the images
            alone = counted(len(paths), "image is", "images are")
            layout.notes.append(f"{folder}: {alone} in no split and left out")
        else:
            layout.left_out.add(UNUSED, paths[0], len(paths))


def _elsewhere(root: Path, found: Description) -> set[Path]:
    """Return the folders that dataset.toml names outside of the dataset's folder."""
    named = {root / name for name in (found.images, found.masks) if name}
    above = os.path.normpath(root)
    return {f for f in named if not Path(os.path.normpath(f)).is_relative_to(above)}
