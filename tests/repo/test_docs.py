"""The documentation builds offline without a warning, and agrees with the code."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pluggy
import pytest

from cnn_core import hookspecs, registry, specs
from cnn_core.text import paper_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))
HOOKS = [name for name in vars(hookspecs) if name.startswith("cnnzoo_")]
pytestmark = pytest.mark.xdist_group("docs")  # one build serves all


def extension() -> ModuleType:
    found = importlib.util.spec_from_file_location("zoo_docs", DOCS / "_ext" / "cnnzoo_docs.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(module, tmp_path_factory) -> Path:
    """Build the pages with the command of `make docs`, in another folder."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\t\$\(BIN\)/sphinx-build (.*) docs build/docs$", makefile, re.M)
    assert {"--fail-on-warning", "--nitpicky"} <= set(shlex.split(line))
    out = tmp_path_factory.mktemp("docs")
    done = module("sphinx", *shlex.split(line), "docs", out, cwd=ROOT)
    assert (done.code, done.err) == (0, "")
    return out


class Page(HTMLParser):
    """A page: its text, links, link targets and the files it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.loads: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        self.names |= {has["id"]} if has.get("id") else set()
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        self.loads += [has[key] for key in ("src", "href") if tag != "a" and has.get(key)]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(site) -> dict[str, Page]:
    return {page: Page(site / f"{page}.html") for page in PAGES}


def test_every_page_is_in_a_toctree():
    listed = re.findall(r"```\{toctree\}\n(?::.*\n)*\n([^`]*)```", read("index"))
    assert sorted(["index", *"\n".join(listed).split()]) == PAGES


def read(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere(site, built):
    checked = 0
    for name, page in built.items():
        for link in page.links:
            if re.match(r"https?:|mailto:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (site / f"{name}.html").parent / path if path else site / f"{name}.html"
            assert target.is_file(), f"{name}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in Page(target).names, f"{name}: {link}"
                checked += 1
    assert checked > 100


def test_a_broken_link_ends_the_build():
    with pytest.raises(FileNotFoundError, match=r"docs/cli\.md links to \.\./gone\.md"):
        extension().expand("[gone](../gone.md)", "cli.md")


def test_a_section_that_is_gone_ends_the_build():
    with pytest.raises(ValueError, match=r"README\.md has no section 'Gone'"):
        extension().expand("<!-- docs: section README.md Gone -->", "guide.md")


def test_links_between_readmes_lead_to_pages(built):
    assert "../segmentation.html" in built["architectures/unet"].links
    assert "performance.html#grad-cam" in built["cam"].links
    assert {"architectures/vgg.html", "packages/core.html"} <= set(built["models"].links)
    assert {"examples.html", "versioning.html"} <= set(built["plugin-tutorial"].links)


def test_pages_load_nothing_from_elsewhere_and_name_no_folder_of_this_machine(site, built):
    for name, page in built.items():
        assert [link for link in page.loads if link.startswith(("http", "//"))] == [], name
        assert str(ROOT) not in (site / f"{name}.html").read_text(encoding="utf-8")
        assert str(Path.home()) not in page.text


def test_every_hook_is_there_with_its_exact_signature(built):
    source = ast.parse(inspect.getsource(hookspecs))
    declared = [node for node in source.body if getattr(node, "name", "") in HOOKS]
    assert [node.name for node in declared] == HOOKS
    text = built["hooks"].text
    for node in declared:
        line = f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
        assert f"{line}\n" in text
        assert plain(ast.get_docstring(node)) in text
        assert node.name.replace("_", "-") in built["hooks"].names


def plain(docstring: str) -> str:
    """Return a docstring as a page shows it: no backticks, typographic quotes."""
    return re.sub(r"`([^`]+)`", r"\1", docstring).replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")


def test_every_field_of_every_spec_is_there(built):
    for name in specs.__all__:
        kind = getattr(specs, name)
        if issubclass(kind, specs.Spec) and kind is not specs.Spec:
            (text,) = re.findall(rf"class {name}:\n((?:    .*\n)+)", built["hooks"].text)
            fields = [line.strip().partition(":")[0] for line in text.splitlines()]
            assert fields == [field.name for field in dataclasses.fields(kind)]


EXAMPLES = dict(
    re.findall(r"^<!-- docs: hook (\w+) -->\n\n```python\n(.*?)```", read("hooks"), re.M | re.S)
)


def test_every_hook_has_an_example():
    assert list(EXAMPLES) == HOOKS


@pytest.mark.parametrize("name", HOOKS)
def test_the_example_of_a_hook_is_a_plugin(name):
    module = ModuleType("example")
    exec(f"from cnn_core import hookimpl\n{EXAMPLES[name]}", module.__dict__)
    manager = pluggy.PluginManager("cnnzoo")
    manager.add_hookspecs(hookspecs)
    manager.register(module)  # raises for an argument that the hook does not have
    manager.check_pending()
    (implementation,) = getattr(manager.hook, name).get_hookimpls()
    returned = inspect.signature(getattr(hookspecs, name)).return_annotation
    if wanted := re.fullmatch(r"Iterable\[(\w+)\]", returned):
        results = list(implementation.function())
        assert [type(result).__name__ for result in results] == [wanted[1]]


def test_the_example_of_a_metric_is_one():
    import torch

    from cnn_core.tasks.classification import TopK

    (source,) = re.findall(r"```python\n(import torch\n\n\nclass Top5.*?)```", read("hooks"), re.S)
    namespace: dict[str, type] = {}
    exec(source, namespace)
    metric, again, ours = namespace["Top5"](10), namespace["Top5"](10), TopK(5)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(50, 10, generator=generator)
        for each in (metric if seed else again, ours):
            each.update(logits, torch.arange(50) % 10)
    metric.sums = metric.sums + again.sums
    assert metric.compute() == ours.compute()


def test_every_command_is_there_with_its_help(built, cnnzoo):
    listed = cnnzoo("--help").out.partition("Commands:\n")[2].partition("Examples:")[0]
    names = re.findall(r"^  ([a-z][\w-]*)", listed, re.M)
    assert len(names) > 20
    page = built["cli"]
    for name in names:
        assert f"cnnzoo-{name}" in page.names
        assert f"Usage: cnnzoo {name} " in page.text
    flat = " ".join(page.text.split())
    for name in ("show", "train", "viz"):
        assert " ".join(cnnzoo(name, "--help").out.partition("\n")[2].split()) in flat


@pytest.mark.parametrize("member", sorted(path.name for path in ROOT.glob("packages/cnn-arch-*")))
def test_every_family_has_a_page_with_the_papers_tables_and_figures(member, built):
    family = member.removeprefix("cnn-arch-")
    text = built[f"architectures/{family}"].text
    assert "Departures from the paper" in text
    here = [entry.spec for _, entry in registry.models() if entry.plugin.distribution == member]
    files = {spec.target.partition(":")[0] for spec in here}
    drawn = {Path(source).stem for source in built[f"architectures/{family}"].loads}
    assert len(drawn & {spec.name for spec in here}) == len(files) > 0
    for module in files:
        table = paper_table(importlib.import_module(module).__doc__)
        assert all(line.rstrip() in text for line in table.splitlines())
        assert text.count("In the code") == len(files)


def test_the_snippet_of_the_guide_runs_and_prints_what_it_says(script, tmp_path):
    code, printed = re.search(
        r"```python\n(.*?)```\n\nprints `(.*?)`", read("guide"), re.S
    ).groups()
    done = script(code, tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == printed


def test_examples_in_docstrings_hold():
    tried = 0
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts[3:]
            result = doctest.testmod(importlib.import_module(".".join(parts)))
            assert result.failed == 0
            tried += result.attempted
    assert tried
