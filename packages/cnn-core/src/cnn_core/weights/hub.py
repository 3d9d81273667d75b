"""Repositories of the Hugging Face Hub: find them in its cache, download them, upload to them.

Downloads land in the cache of huggingface_hub, which other libraries share. Its settings apply:
HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_core.errors import ResourceError, UsageError, WeightsMissingError, ZooError
from cnn_core.plugins.discovery import describe
from cnn_core.text import printable

__all__ = [
    "CARD",
    "CONFIG",
    "Repository",
    "WEIGHTS",
    "is_hub_name",
    "locate_repository",
    "parse_repository",
    "require_hub",
    "upload_folder",
]

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-][\w./-]*))?", re.ASCII)
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = [WEIGHTS, CONFIG]  # all that is needed to use a network
HUBS_OWN = ".gitattributes"  # the hub puts it into every new repository


@dataclass(frozen=True)
class Repository:
    """A repository by "owner/name", with a branch, tag or commit; None is its main branch."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def address(self) -> str:
        """The address of its page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.id}"


def is_hub_name(source: object) -> bool:
    """Return whether a source is meant as a repository: "hf:owner/name"."""
    return str(source).startswith(PREFIX)


def parse_repository(name: object) -> Repository:
    """Return the repository called "hf:owner/name" or "hf:owner/name@REVISION".

    Raises:
        UsageError: the name has another form.
    """
    match = NAME.fullmatch(str(name))
    if match is None:
        raise UsageError(
            f"'{printable(str(name))}': expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"
        )
    return Repository(match[1], match[2])


def require_hub() -> Any:
    """Return the module huggingface_hub; raise UsageError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        message = f"{error.name or 'huggingface_hub'} is not installed"
        raise UsageError(message, 'pip install "cnn-core[hub]"') from error
    return huggingface_hub


def locate_repository(name: object, *, download: bool = False) -> Path:
    """Return the folder of a repository in the cache; with `download`, fetch its newest version.

    Without `download`, the network is not used. Of the repository's files, only weights and
    configuration are fetched.

    Raises:
        UsageError: the name is not one of a repository, or huggingface_hub is not installed.
        WeightsMissingError: it is not in the cache, or it cannot be fetched; the message says why.
        ResourceError: the disk is full.
    """
    repository, hub = parse_repository(name), require_hub()
    folder = _fetch(hub, repository) if download else _cached(hub, repository)
    if folder is None:
        raise WeightsMissingError(
            f"{repository}: not on this machine: {repository.address}",
            "--download (in Python: download=True) fetches it, after a line with its size and "
            "licence",
        )
    if not (folder / WEIGHTS).is_file():
        raise WeightsMissingError(
            f"{repository}: has no {WEIGHTS}: {repository.address}",
            "only weights in this format are read: other files of weights can contain code",
        )
    return folder


def _cached(hub: Any, repository: Repository, revision: str | None = None) -> Path | None:
    """Return a repository's folder in the cache if it is complete; do not ask the hub."""
    with _explained(repository):
        try:
            folder = hub.snapshot_download(
                repository.id,
                revision=revision or repository.revision,
                allow_patterns=FILES,
                local_files_only=True,
            )
        except hub.errors.LocalEntryNotFoundError:
            return None
        return Path(folder)


def _fetch(hub: Any, repository: Repository) -> Path:
    """Print a line with the size of the files that the cache lacks, and download them."""
    with _explained(repository):
        info = hub.HfApi().model_info(
            repository.id, revision=repository.revision, files_metadata=True
        )
        if _cached(hub, repository, info.sha) is None:
            _announce(repository, info)
        with _no_bars_in_pipes(hub):
            folder = hub.snapshot_download(
                repository.id, revision=repository.revision, allow_patterns=FILES
            )
        return Path(folder)


@contextlib.contextmanager
def _no_bars_in_pipes(hub: Any) -> Iterator[None]:
    """Switch off progress bars unless stderr is a terminal: some do not check."""
    bars = hub.utils
    if sys.stderr.isatty() or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def _announce(repository: Repository, info: Any) -> None:
    """Print size, licence and address on stderr."""
    size = sum(file.size or 0 for file in info.siblings or () if file.rfilename in FILES)
    licence = getattr(info.card_data, "license", None) or "not given"
    text = f"{size / 1e6:,.1f} MB, licence: {licence}"
    print(
        printable(f"downloading {repository} ({text}) from {repository.address}"), file=sys.stderr
    )


def upload_folder(
    folder: Path, repository: Repository, *, private: bool = False, force: bool = False
) -> str:
    """Upload the files of a folder in one commit; return the address of the repository.

    The repository is created if it does not exist. A commit is all or nothing.

    Raises:
        UsageError: the repository has files already, and `force` is false, or it is public, and
            `private` is true.
        ZooError: the hub refuses the upload or cannot be reached.
    """
    hub = require_hub()
    with _explained(repository, action="uploaded"):
        api = hub.HfApi()
        # Check the card first: otherwise an invalid one would leave an empty repository behind.
        hub.ModelCard.load(folder / CARD).validate()
        api.create_repo(repository.id, private=private or None, exist_ok=True)
        info = api.model_info(repository.id)
        if private and not info.private:
            raise UsageError(
                f"{repository}: is public, and --private does not change that",
                f"make it private first: {repository.address}/settings",
            )
        there = {file.rfilename for file in info.siblings or ()} - {HUBS_OWN}
        if there and not force:
            raise UsageError(
                f"{repository}: has files already: {repository.address}",
                "--force adds a commit that replaces those of the same names",
            )
        added = {path.name: path for path in sorted(folder.iterdir())}
        changes = [hub.CommitOperationAdd(name, str(path)) for name, path in added.items()]
        # An older config.json would describe other weights.
        stale = sorted(there.intersection(FILES) - added.keys())
        changes += [hub.CommitOperationDelete(name) for name in stale]
        api.create_commit(repository.id, changes, commit_message="Upload with cnnzoo push")
    return repository.address


@contextlib.contextmanager
def _explained(repository: Repository, action: str = "downloaded") -> Iterator[None]:
    """Turn every exception of huggingface_hub into one error of cnnzoo."""
    try:
        yield
    except (ZooError, MemoryError):
        raise
    except Exception as error:
        local = isinstance(error, require_hub().errors.LocalEntryNotFoundError)
        # The hub raises "not in the cache" from the error that says why the download failed.
        cause = error.__cause__ if local and error.__cause__ else error
        raise _failure(cause, repository, action) from error


def _failure(error: BaseException, repository: Repository, action: str) -> ZooError:
    """Return the error of cnnzoo for an exception."""
    errors = require_hub().errors
    kind = WeightsMissingError if action == "downloaded" else ZooError
    response = getattr(error, "response", None)
    if isinstance(error, errors.GatedRepoError):
        return kind(
            f"{repository}: its owner asks for your agreement first",
            f"give it at {repository.address}, then: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return kind(f"{repository}: has no revision '{repository.revision}'", repository.address)
    if isinstance(error, errors.RepositoryNotFoundError) or getattr(
        response, "status_code", 0
    ) in (401, 403):
        what = "does not exist, or it is private" if kind is WeightsMissingError else "refused"
        return kind(
            f"{repository}: {what}: {repository.address}",
            "to have access: hf auth login, or set HF_TOKEN",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return kind(f"{repository}: cannot be {action}: HF_HUB_OFFLINE is set")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ResourceError(f"{repository}: no space left on the disk of {_cache()}")
    return kind(
        f"{repository}: cannot be {action}: {describe(error)}",
        "if it is in the cache: leave out --download"
        if action == "downloaded"
        else "to write the files now, and upload them later: --out DIR",
    )


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
