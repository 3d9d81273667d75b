"""Build pages from other parts of the repository: READMEs, `--help`, specs and hooks.

Before Sphinx reads a page, each line `<!-- docs: MAKER ARGUMENT -->` is replaced by the Markdown
that the maker returns. A link to a file leads to the page with that file's text. If there is no
such page, it leads to a copy of the file.
"""

from __future__ import annotations

import ast
import csv
import inspect
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.testing import CliRunner

from cnn_core import hookspecs, registry, specs
from cnn_core.cli import app
from cnn_core.cli.list_keys import as_toml
from cnn_core.create import create_model
from cnn_core.runs.recipe_keys import recipe_keys
from cnn_viz import style
from cnn_viz.drawing.render import encode_figure
from cnn_viz.views.architecture import stage_by_stage

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["expand", "setup"]

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent

_MARK = re.compile(r"^<!-- docs: (\w+) ?(.*?) -->$", re.M)
_LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)")


def expand(text: str, page: str) -> str:
    """Return a page's Markdown with its marks expanded; `page` is its path in docs/."""

    def made(mark: re.Match[str]) -> str:
        return MAKERS[mark[1]](mark[2], page)

    return _MARK.sub(made, relink(text, DOCS / page, page))


def relink(text: str, source: Path, page: str) -> str:
    """Rewrite the links of `source` for `page`.

    Raises:
        FileNotFoundError: a link is broken.
    """

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[1]))
        if not target.exists():
            raise FileNotFoundError(f"{source.relative_to(ROOT)} links to {link[1]}")
        name = target.relative_to(ROOT).as_posix()
        here = (DOCS / page).parent
        return Path(os.path.relpath(DOCS / homes().get(name, target), here)).as_posix()

    return _LINK.sub(moved, text)


def pages() -> list[str]:
    """Return the paths of all pages, relative to docs/, sorted."""
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@cache
def homes() -> dict[str, str]:
    """Map each file, and each folder with a README, to the page that shows it."""
    found = {"README.md": "index.md"}
    for page in pages():
        for _, argument in _MARK.findall((DOCS / page).read_text(encoding="utf-8")):
            file = argument.split(" ")[0]
            if file.endswith(".md"):
                found.setdefault(file, page)
                found.setdefault(posixpath.dirname(file), page)
        if (ROOT / page.removesuffix(".md")).is_dir():
            found.setdefault(page.removesuffix(".md"), page)
    return found


# Makers: (argument, page) -> Markdown


def readme(file: str, page: str) -> str:
    """Return the text of a file without its title."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return relink(text.partition("\n")[2].strip(), ROOT / file, page)


def beginning(file: str, page: str) -> str:
    """Return the text between a file's title and its first section."""
    return re.split(r"^## ", readme(file, page), maxsplit=1, flags=re.M)[0].strip()


def section(argument: str, page: str) -> str:
    """Return one section of a file without its heading; `argument` is like `README.md Use`."""
    file, _, title = argument.partition(" ")
    for part in re.split(r"^## ", readme(file, page), flags=re.M)[1:]:
        heading, _, text = part.partition("\n")
        if heading == title:
            return text.strip()
    raise ValueError(f"{page}: {file} has no section {title!r}")


def networks(plugin: str, page: str) -> str:
    """Return a figure and the output of `cnnzoo show` for the first network of each file."""
    first: dict[str, str] = {}
    for name, entry in registry.models():
        if entry.plugin.name == plugin:
            first.setdefault(entry.spec.target.partition(":")[0], name)
    return "\n\n".join(
        f"### {name}\n\n![{name}, stage by stage]({_figure(name, page)})\n\n{_block(_shown(name))}"
        for name in first.values()
    )


def _figure(model: str, page: str) -> str:
    """Draw a network and return the path of the figure, which is deleted after the build."""
    spec, path = registry.get_spec(model), Path(_folder().name) / f"{model}.svg"
    build = partial(create_model, model)
    with style.applied():
        path.write_bytes(
            encode_figure(stage_by_stage(model, build, spec.stages, spec.input), "svg")
        )
    return Path(os.path.relpath(path, (DOCS / page).parent)).as_posix()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _shown(model: str) -> str:
    return CliRunner().invoke(app, ["show", model], catch_exceptions=False).stdout


def commands(_: str, page: str) -> str:
    """Return the help texts of `cnnzoo` and all its commands."""
    group = click.Context(app, info_name="cnnzoo", terminal_width=88, **app.context_settings)
    parts = [_block(app.get_help(group))]
    for name in app.list_commands(group):
        command = app.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=group, terminal_width=88)
        parts.append(f"## cnnzoo {name}\n\n{_block(command.get_help(context))}")
    return "\n\n".join(parts)


def hook(name: str, page: str) -> str:
    """Return the signature and docstring of a hook, and the fields of the spec that it returns."""
    function = getattr(hookspecs, name)
    parts = [_block(signature(name), "python"), _words(function)]
    if returned := re.search(r"Iterable\[(\w+)\]", signature(name)):
        spec = getattr(specs, returned[1])
        parts += [_fields(spec), _words(spec)]
    return "\n\n".join(parts)


def _words(documented: object) -> str:
    """Return a docstring as Markdown, with `<` escaped outside code: it is not HTML."""
    parts = (inspect.getdoc(documented) or "").split("`")
    parts[::2] = [part.replace("<", r"\<") for part in parts[::2]]
    return "`".join(parts)


def signature(name: str) -> str:
    """Return the line of the source that declares a hook."""
    return _declared()[name]


@cache
def _declared() -> dict[str, str]:
    tree = ast.parse(inspect.getsource(hookspecs))
    return {
        f.name: f"def {f.name}({ast.unparse(f.args)}) -> {ast.unparse(f.returns)}"
        for f in tree.body
        if isinstance(f, ast.FunctionDef) and f.returns
    }


def _fields(spec: type) -> str:
    """Return the fields that all specs have, then those that the class of a spec declares."""
    lines = [line for cls in (specs.Spec, spec) for line in _annotated(cls)]
    return _block(f"class {spec.__name__}:\n" + "\n".join(f"    {f}" for f in lines), "python")


def _annotated(cls: type) -> Iterator[str]:
    (node,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(node, ast.ClassDef)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line):
            yield ast.unparse(line)


def recipe(_: str, page: str) -> str:
    """Return the table of recipe keys, as `cnnzoo list-keys` prints it."""
    titles = ("key", "values", "default", "meaning", "source")
    rows = (
        (f"`{key.key}`", key.values or key.kind, _default(key.default), key.meaning, key.source)
        for key in recipe_keys()
    )
    lines = (titles, ["---"] * len(titles), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _default(value: object) -> str:
    return "" if value is None else f"`{as_toml(value)}`"


def results(file: str, page: str) -> str:
    """Return the table of results.csv as Markdown."""
    with (ROOT / file).open(newline="", encoding="utf-8") as lines:
        rows = [_result(row) for row in csv.DictReader(lines)]
    titles = ("network", "parameters", "MACs", "input", "images/s", "published", "ours", "recipe")
    right = ("parameters", "MACs", "images/s")
    rules = ["--:" if title in right else "---" for title in titles]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rules, *rows))


def _result(row: dict[str, str]) -> tuple[str, ...]:
    published = f"[{row['published']}]({row['source']}) (`{row['weights']}`)"
    return (
        f"`{row['model']}`",
        f"{int(row['parameters']):,}",
        f"{int(row['macs']):,}",
        row["input"],
        f"{float(row['images_per_second']):,g}" if row["images_per_second"] else "not measured",
        published if row["published"] else "",
        row["ours"],
        f"`{row['recipe']}`" if row["recipe"] else "",
    )


def speeds(file: str, page: str) -> str:
    """Return a sentence that names the machines and versions of torch of the measurements."""
    with (ROOT / file).open(newline="", encoding="utf-8") as lines:
        measured = [row for row in csv.DictReader(lines) if row["images_per_second"]]
    machines = sorted({f"{row['hardware']}, torch {row['torch']}" for row in measured})
    return f"Measured on: {'; '.join(machines) or 'no machine yet'}."


def _block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.strip()}\n```"


MAKERS: dict[str, Callable[[str, str], str]] = {
    "beginning": beginning,
    "commands": commands,
    "hook": hook,
    "networks": networks,
    "readme": readme,
    "recipe": recipe,
    "results": results,
    "section": section,
    "speeds": speeds,
}


def setup(sphinx: Sphinx) -> dict[str, bool]:
    """Expand every page when Sphinx reads it."""

    def read(sphinx: Sphinx, docname: str, source: list[str]) -> None:
        source[0] = expand(source[0], f"{docname}.md")

    sphinx.connect("source-read", read)
    return {"parallel_read_safe": True}
