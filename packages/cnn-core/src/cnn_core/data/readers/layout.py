"""Tell folders of splits from folders of classes, by their names and by what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cnn_core.data.readers.description import FILE
from cnn_core.data.readers.listing import (
    BESIDE,
    UNLABELLED,
    LeftOut,
    has_images,
    sorted_files,
    subfolders,
)
from cnn_core.data.split_names import UNDERSTOOD, held_out_names, split_of, splits_among
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted, printable

__all__ = ["Layout", "find_layout", "folders_in", "split_folders"]

# A folder for the images in test/ or val/ when they have no labels.
NO_CLASS = r"(un|no).*|images?|imgs?|pictures?|photos?|all|data|dummy|test.*|val.*|0"
DEPTH = 3  # folders in a class in which a copy of the dataset is looked for
EXTRAS = r"(un|no)[ _-]?label|pred|infer|submi|extra|sample|annot|raw|new"


@dataclass
class Layout:
    """The folders of the splits, what was left out, and lines for the user.

    `notes` say how the folders were understood. `faults` are decisions that may be wrong.
    """

    splits: dict[str, Path]
    left_out: LeftOut
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def split_folders(root: Path, left_out: LeftOut | None = None) -> dict[str, Path]:
    """Return the folders of the splits by their names; if there are none, `root` as train.

    Raises:
        UsageError: there is no such folder.
        DatasetCorruptError: two folders are the same split, or there is none for training.
    """
    found = _by_split(folders_in(root, left_out))
    if found and "train" not in found:
        raise DatasetCorruptError(f"{root}: has {', '.join(sorted(found))}, but no folder 'train'")
    return found or {"train": root}


def folders_in(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the folders in a dataset's folder, sorted; count hidden ones.

    Raises:
        UsageError: there is no such folder.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root}: no such folder",
            "give its path after ':'; if a run's folder has moved, use --data-dir DIR",
        )
    return subfolders(root, left_out)


def _by_split(folders: Iterable[Path]) -> dict[str, Path]:
    by_name = {folder.name: folder for folder in folders}
    found = {}
    for split, names in splits_among(by_name).items():
        if len(names) > 1:
            first, second = (by_name[name] for name in names[:2])
            raise DatasetCorruptError(f"{second}: a second {split} split, besides {first}")
        found[split] = by_name[names[0]]
    return found


def find_layout(root: Path) -> Layout:
    """Find the splits of PATH/CLASS/FILE or PATH/SPLIT/CLASS/FILE.

    A folder with the name of a split is a class if it contains only images, and other folders of
    images are beside it.

    Raises:
        UsageError: there is no such folder.
        DatasetCorruptError: the folders can be understood in two ways, or there is no training
            split. The message says how to arrange the files for either.
    """
    left_out = LeftOut(known={root / FILE})
    folders = folders_in(root, left_out)
    named = [name for names in splits_among(f.name for f in folders).values() for name in names]
    others = [f for f in folders if f.name not in named and has_images(f)]
    layout = Layout({"train": root}, left_out)
    nested = [name for name in named if subfolders(root / name)]
    if not named:
        _check_classes(root, folders, layout)
    elif not nested and others:
        listed = _listed(named)
        layout.notes.append(
            f"{root}: {listed} taken as {'classes' if len(named) > 1 else 'a class'}, like "
            f"{_listed(f.name for f in others)}: a split has a folder for each class in it"
        )
    elif not nested:
        if any(map(has_images, (root / name for name in named))):
            raise _no_classes(root, named)
        layout.splits = split_folders(root)
    else:
        layout.splits = _splits(root, folders, others, layout)
    if held_out_names([layout.splits.get("test", root / "test").name]):
        layout.notes.append(f"{layout.splits['test']}: taken as the split 'test'")
    return layout


def _no_classes(root: Path, named: list[str]) -> DatasetCorruptError:
    listed, first = _listed(named), named[0]
    return DatasetCorruptError(
        f"{root}: {listed} hold images, but no folder for each class",
        f"write {root}/{first}/CLASS/FILE; if these names are classes, {root}/train/{first}/FILE",
    )


def _splits(
    root: Path, folders: list[Path], others: list[Path], layout: Layout
) -> dict[str, Path]:
    """Return the folders of splits, at least one of which has class folders."""
    found = {split: _unwrapped(f, layout) for split, f in _by_split(folders).items()}
    if "train" not in found:
        beside = f", only {_listed(f.name for f in others)}" if others else ""
        raise DatasetCorruptError(
            f"{root}: has {', '.join(sorted(found))}, but no folder 'train'{beside}",
            f"write {root}/train/CLASS/FILE; names of splits: {UNDERSTOOD}",
        )
    classes = {f.name for f in subfolders(found["train"])}
    if not classes:
        raise _no_classes(root, [found["train"].name])
    strange = [f for f in others if not re.search(EXTRAS, f.name.lower())]
    if strange and len(found) == 1:
        raise DatasetCorruptError(
            f"{root}: {found['train'].name} has class folders ({_listed(sorted(classes))}), "
            f"but {_listed(f.name for f in strange)} with images beside it",
            f"if it is the training split, move the others away; if it is a class, write "
            f"{root}/train/{strange[0].name} and {root}/train/{found['train'].name}",
        )
    for split_folder in found.values():
        _require_no_copy(split_folder, subfolders(split_folder), layout)
    for folder in others:
        layout.left_out.add(BESIDE, folder, len(sorted_files(folder)))
    return {
        split: folder
        for split, folder in found.items()
        if split == "train" or _labelled(split, folder, classes, layout)
    }


def _unwrapped(folder: Path, layout: Layout) -> Path:
    """Return the folder in a folder if it has the same name, as in seg_train/seg_train/CLASS."""
    inner = subfolders(folder)
    if len(inner) != 1 or split_of(inner[0].name)[0] != split_of(folder.name)[0]:
        return folder
    layout.notes.append(f"{folder}: read from {inner[0]}, the only folder in it")
    return inner[0]


def _labelled(split: str, folder: Path, classes: set[str], layout: Layout) -> bool:
    """Return whether a folder for validation or testing has class folders; else say so."""
    inside = {f.name for f in subfolders(folder)}
    if inside and not (len(inside) == 1 and re.fullmatch(NO_CLASS, min(inside).lower())):
        return True  # classes, even if training does not have them
    if inside & classes:
        return True
    images = sorted_files(folder)
    if not images:
        layout.notes.append(f"{folder}: empty, so there is no {split} split")
        return False
    layout.left_out.add(UNLABELLED, images[0], len(images))
    layout.notes.append(
        f"{folder}: {counted(len(images), 'image')} without class folders cannot be measured: "
        f"cnnzoo predict RUN {folder}"
    )
    return False


def _check_classes(root: Path, folders: list[Path], layout: Layout) -> None:
    """Report folders of classes that look like folders of splits, or contain splits or classes."""
    inside = {f: {inner.name for inner in subfolders(f)} for f in folders}
    for folder, names in inside.items():
        if len(found := splits_among(names)) > 1 and "train" in found:
            raise _splits_in_class(root, folder, [n for same in found.values() for n in same])
    _require_no_copy(root, folders, layout)
    alike = {frozenset(names) for names in inside.values()}
    if len(folders) > 1 and len(alike) == 1 and len(first := sorted(alike.pop())) > 1:
        layout.faults.append(
            f"{root}: {_listed(f.name for f in folders)} are taken as classes, but all have the "
            f"folders {_listed(first)}; if they are splits, name them train and test"
        )
    elif any(inside.values()):
        count, example = sum(map(bool, inside.values())), next(f for f in folders if inside[f])
        of = f"of {len(folders)} classes"
        layout.notes.append(
            f"{root}: {counted(count, f'{of} has folders in it', f'{of} have folders in them')}, "
            f"whose images belong to the class, such as {example}"
        )


def _splits_in_class(root: Path, folder: Path, splits: list[str]) -> DatasetCorruptError:
    """Return the error for a folder that holds splits, but lies where a class is expected."""
    if any(subfolders(folder / name) for name in splits):
        return DatasetCorruptError(
            f"{folder}: has the splits {_listed(splits)}, with folders of classes",
            f"if it is the dataset: imagefolder:{folder}; else move it away",
        )
    return DatasetCorruptError(
        f"{folder}: has the splits {_listed(splits)} in a class",
        f"write {root}/train/{folder.name}/FILE and {root}/test/{folder.name}/FILE",
    )


def _require_no_copy(root: Path, classes: list[Path], layout: Layout) -> None:
    """Report folders in a class that are named like other classes.

    Raises:
        DatasetCorruptError: a class has folders of all other classes, as in a copy of the dataset
            that an archive was extracted into.
    """
    known = {f.name.casefold() for f in classes}
    found: list[Path] = []
    for folder in classes:
        others = known - {folder.name.casefold()}
        for inner in (folder, *_folders_below(folder, DEPTH)):
            same = [f for f in subfolders(inner) if f.name.casefold() in others]
            if len(same) > 1 and len(same) == len(others):
                raise DatasetCorruptError(
                    f"{inner}: has the folders {_listed(f.name for f in same)}, as {root} has: a "
                    "copy of the dataset inside itself?",
                    "delete it, or move it away; if it is meant, rename the folders in it",
                )
            found += [f for f in same if f not in found]
    if found:
        layout.notes.append(
            f"{counted(len(found), 'folder')} in a class with the name of another class, such as "
            f"{found[0]}: the images belong to the class around it"
        )


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    for inner in subfolders(folder) if depth else ():
        yield inner
        yield from _folders_below(inner, depth - 1)


def _listed(names: Iterable[str], most: int = 5) -> str:
    all_names = [printable(name) for name in names]
    return ", ".join(all_names[:most]) + (", …" if len(all_names) > most else "")
