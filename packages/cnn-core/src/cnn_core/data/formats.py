"""Tell files apart by their first bytes: images that are read, other images, archives."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import features

__all__ = [
    "FORMATS",
    "HEAD",
    "READ",
    "SUFFIXES",
    "conversion",
    "described",
    "is_archive",
    "is_other_image",
    "is_readable",
]

AVIF = features.check("avif")
# Few formats mean few decoders that an untrusted file can attack.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", *(("AVIF",) if AVIF else ()))
# A file with one of these suffixes is meant as an image, whatever it contains.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".npy"),
    *((".avif",) if AVIF else ()),
)
READ = f"formats: {', '.join(FORMATS)}, NPY"
HEAD = 512  # bytes that are enough to recognise a file

READABLE = (
    rb"\xff\xd8\xff",
    rb"\x89PNG\r\n\x1a\n",
    rb"GIF8[79]a",
    rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}",
    rb"II[*+]\0|MM\0[*+]",
    rb"RIFF.{4}WEBP",
    rb"P[1-6Ff][ \t\r\n#]",
    rb"\x93NUMPY",
    *((rb".{4}ftypavi[fs]",) if AVIF else ()),
)
OTHER_IMAGES = {
    "HEIC": rb".{4}ftyp(he[iv][cxms]|mif1|msf1)",
    "AVIF": rb".{4}ftypavi[fs]",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "Photoshop": rb"8BPS",
    "SVG": rb"[^\0]*<svg[\s>]",
    "EPS": rb"%!PS",
    "PDF": rb"%PDF",
    "OpenEXR": rb"v/1\x01",
    "DICOM": rb".{128}DICM",
    "FITS": rb"SIMPLE  =",
    "QOI": rb"qoif",
    "DDS": rb"DDS ",
    "Canon raw": rb"II\*\0.{4}CR|.{4}ftypcrx",
    "Fujifilm raw": rb"FUJIFILMCCD-RAW",
    "video": rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3",
    "icon": rb"\0\0\x01\0",
}
# Camera raw files begin like a TIFF, and Pillow would read their small preview.
RAW = {".nef", ".cr2", ".cr3", ".dng", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
BY_SUFFIX = {
    **dict.fromkeys(RAW, "camera raw"),
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".avif": "AVIF",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".psd": "Photoshop",
    ".svg": "SVG",
    ".tga": "Targa",
    ".dcm": "DICOM",
    ".nii": "NIfTI",
    ".exr": "OpenEXR",
}
OTHERS = {
    "an archive": rb"PK[\x03\x05]\x04?|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!",
    "HTML": rb"(\xef\xbb\xbf)?\s*(?i:<!doctype|<html)",
    "a Git LFS pointer": rb"version https://git-lfs",
    "HDF5": rb"\x89HDF",
}


def is_readable(head: bytes, path: Path) -> bool:
    """Return whether a file begins like an image of a format that is read."""
    if path.suffix.lower() in RAW or _matching(head, {"": OTHER_IMAGES["Canon raw"]}) is not None:
        return False
    return any(re.match(pattern, head, re.DOTALL) for pattern in READABLE)


def is_other_image(head: bytes, path: Path) -> bool:
    """Return whether a file is an image, by bytes or name, of a format that is not read."""
    return _other_image(head, path) is not None


def is_archive(head: bytes) -> bool:
    """Return whether a file begins like an archive."""
    return re.match(OTHERS["an archive"], head, re.DOTALL) is not None


def described(head: bytes, path: Path) -> str:
    """Return what a file is and how to convert it, or its first bytes if they are unknown."""
    if not head:
        return "an empty file, not an image"
    if (kind := _other_image(head, path)) is not None:
        return f"{kind}, which is not read; {conversion(head, path)}"
    if (kind := _matching(head, OTHERS)) is not None:
        return f"{kind}, not an image"
    return f"not a readable image; it starts with the bytes {head[:8].hex(' ')}"


def conversion(head: bytes, path: Path) -> str:
    """Return how to convert a file of a format that is not read."""
    if _other_image(head, path) == "video":
        return "extract its frames: ffmpeg -i FILE frame%05d.png"
    if path.suffix.lower() in ("", *SUFFIXES):  # other files with this suffix may be sound
        return f"convert it: magick {path.name} {path.stem}.png"
    return f"convert it: magick mogrify -format png *{path.suffix}"


def _other_image(head: bytes, path: Path) -> str | None:
    if is_readable(head, path):
        return None
    return _matching(head, OTHER_IMAGES) or BY_SUFFIX.get(path.suffix.lower())


def _matching(head: bytes, patterns: dict[str, bytes]) -> str | None:
    found = (name for name, pattern in patterns.items() if re.match(pattern, head, re.DOTALL))
    return next(found, None)
