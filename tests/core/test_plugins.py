"""Fault injection: bad plugins of every kind, against every command that reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from cnn_core.plugins.discovery import discover

# First-party plugins other than lenet, which the tests look for beside the bad ones.
OTHERS = ",".join(plugin.name for plugin in discover() if plugin.name != "lenet")

BAD = "plugin 'bad' (cnn-arch-bad 1.2.3)"
NO_VIEW = "no view is installed"

ALL = (
    "--help",
    "list-models",
    "plugins",
    "--version",
    "list-datasets",
    "list-recipes",
    "list-views",
    "list-models --json",
    "plugins --json",
)


@dataclass(frozen=True)
class Fault:
    """A sound plugin spoiled by `spoil`, which stands at the end of its module."""

    spoil: str = ""
    cause: str = ""  # a regular expression that the one line on stderr matches
    hook: str = ""  # the hook that shows it; otherwise loading does
    loses: bool = True  # the plugin's model "tiny" is no longer offered
    qualified: str = ""  # the first-party name that can now only be had with its origin
    requires: tuple[str, ...] = ("cnn-core",)
    name: str = "bad"
    target: str | None = None
    line: str = BAD  # what the line begins with

    @property
    def lenet5(self) -> str:
        return f"cnn-arch-lenet/{self.qualified}" if self.qualified else "lenet5"

    def touches(self, command: str) -> bool:
        """Whether a command comes upon this fault."""
        if command == "--version":
            return False
        if not self.hook or command.startswith("plugins"):
            return True
        shows = {"models": ("list-models", "show"), "commands": ("--help",)}
        return command.startswith(shows[self.hook])


def hook(body, name="models"):
    return f"@hookimpl\ndef cnnzoo_{name}():\n    {body}\n"


def returns(value, cause):
    return Fault(hook(f"return {value}"), cause, hook="models")


def field(change, cause):
    return Fault(hook(f"return [model({change})]"), cause, hook="models")


FAULTS = {
    # What happens before or while a module is imported.
    "module missing": Fault(
        target="no_such_module", cause="ModuleNotFoundError: .*no_such_module"
    ),
    "entry point names no module": Fault(target="bad one!", cause="NotFoundError: .*'bad one!'"),
    "entry point names an object": Fault(
        "x = 3", target="cnn_arch_bad_plugin:x", cause="ModuleNotFoundError: .*plugin:x'"
    ),
    "ImportError": Fault("raise ImportError('libfoo.so.1')", "import: ImportError: libfoo.so.1"),
    "SyntaxError": Fault("def", r"import: SyntaxError: .*cnn_arch_bad_plugin\.py"),
    "null byte": Fault("\0", "import: (SyntaxError|ValueError): "),
    "SystemExit(0)": Fault("raise SystemExit(0)", "import: SystemExit: 0"),
    "sys.exit()": Fault("import sys; sys.exit()", r"import: SystemExit \("),
    "RecursionError": Fault("def f(): f()\nf()", "import: RecursionError: "),
    "AssertionError": Fault("assert False", r"import: AssertionError \("),
    "raises core's PluginError": Fault(
        "from cnn_core.errors import PluginError\nraise PluginError('mine', 'two lines')",
        "import: PluginError: mine two lines",
    ),
    "exception that cannot be printed": Fault(
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        r"import: E \(",
    ),
    "ANSI and bidi in the message": Fault(
        r"raise ValueError('\x1b[31m red \u202e \ud800 \n second line')",
        r"ValueError: \\x1b\[31m red \\u202e \\ud800 second line",
    ),
    "endless message": Fault("raise ValueError('x' * 100_000)", r"ValueError: x{50,400}…"),
    "asks for models while loading": Fault(
        "from cnn_core import get_spec\nget_spec('lenet5')", "while plugins are being loaded"
    ),
    "prints when imported": Fault("print('hello')", r"printed 'hello\\n", loses=False),
    "two things wrong": Fault(
        "print('hello')\n" + hook("raise ValueError(7)"), r"import: printed 'hello\\n'"
    ),
    "imports torch": Fault("import torch", "import: imports torch", loses=False),
    # What the distribution says.
    "pin on a later core": Fault(
        requires=("cnn-core>=99",), cause="requirements: .*>=99, this is"
    ),
    "pin on another series": Fault(requires=("click", "CNN_Core~=9.0"), cause="needs CNN_Core~=9"),
    "pin that cannot be read": Fault(requires=("cnn-core @@ 3",), cause="requirements: .*@@ 3"),
    # Hooks.
    "misspelt hook": Fault(
        hook("return []", "model"),
        "cnn_arch_bad.*: unknown hook 'cnnzoo_model', did you mean .*'cnnzoo_models'",
    ),
    "unknown hook argument": Fault(
        "@hookimpl\ndef cnnzoo_views(size): return []", "hooks: cnnzoo_views.*size"
    ),
    "hook without hookimpl": Fault(
        "def cnnzoo_views(): return []", "hooks without @cnn_core.hookimpl: cnnzoo_views"
    ),
    "no hook": Fault("del cnnzoo_models", "cnn_arch_bad_plugin implements no hook"),
    "hook raises": Fault(hook("raise ValueError(7)"), "cnnzoo_models: ValueError: 7", "models"),
    "hook exits": Fault(hook("raise SystemExit(0)"), "cnnzoo_models: SystemExit: 0", "models"),
    "generator raises late": Fault(
        hook("yield model()\n    1 / 0"), "cnnzoo_models: ZeroDivisionError", "models"
    ),
    "hook wrapper": Fault(
        "@hookimpl(wrapper=True)\ndef cnnzoo_models():\n    yield\n    return 3",
        "cnnzoo_models: ",
        "models",
    ),
    "returns None": returns("None", "returned NoneType, expected an iterable of ModelSpec"),
    "returns a dict": returns("{'tiny': model()}", "returned dict, expected an iterable"),
    "returns a string": returns("'tiny'", "returned str, expected an iterable"),
    "returns a number": returns("3", "returned int, expected an iterable"),
    "item of a wrong type": returns("[model(), 'tiny']", "returned a str among its items"),
    "item of another kind": returns(
        "[model().paper]", "returned a Paper among its items, expected ModelSpec"
    ),
    "one model twice": returns("[model(), model()]", "offers model 'tiny' twice"),
    "alias of itself": returns("[model(aliases=(model().name,))]", "offers model 'tiny' twice"),
    # Fields of a spec.
    "invalid name": field("name='Tiny Net'", "SpecError: .*name = 'Tiny Net', expected lower"),
    "invalid target": field("target='tiny_net.tiny'", "target = 'tiny_net.tiny', expected 'pack"),
    "invalid input": field("input=(8, 8)", r"input = \(8, 8\), expected \(channels, height"),
    "negative params": field("params=-650", "params = -650, expected a positive integer"),
    "unknown task": field("task='poetry'", "task = 'poetry', expected one of classification"),
    "cam_stage is no stage": field("cam_stage='tail'", "cam_stage = 'tail', expected one of its"),
    "summary is no text": field("summary=None", "summary = None, expected str"),
    "unknown keyword": field("colour='red'", "TypeError: .*unexpected keyword argument 'colour'"),
    "field missing": Fault(
        hook("from cnn_core import ModelSpec\n    return [ModelSpec(name='tiny')]"),
        "TypeError: .*missing",
        "models",
    ),
    # Names that others have.
    "shadows a first-party model": Fault(
        hook("return [model('lenet5')]"),
        "model name 'lenet5' is ambiguous: use 'cnn-arch-bad/lenet5' or 'cnn-arch-lenet/lenet5'",
        "models",
        qualified="lenet5",
        line="model name",
    ),
    "alias shadows a first-party model": Fault(
        hook("return [model(aliases=('lenet5',))]"),
        "'lenet5' is ambiguous: use 'cnn-arch-bad/tiny' or 'cnn-arch-lenet/lenet5'",
        "models",
        loses=False,
        qualified="lenet5",
        line="model name",
    ),
    "shadows a first-party plugin": Fault(
        name="lenet",
        cause="'lenet' is claimed by cnn-arch-bad/lenet and cnn-arch-lenet/lenet",
        loses=False,
        line="plugin name",
    ),
    "shadows core": Fault(
        name="core",
        cause="'core' is claimed by cnn-core/core and cnn-arch-bad/core",
        loses=False,
        line="plugin name",
    ),
    "shadows a command": Fault(
        "from cnn_core import CommandSpec\n"
        + hook("return [CommandSpec(name='train', target='a:b', summary='mine')]", "commands"),
        "command name 'train' is ambiguous: use 'cnn-arch-bad/train' or 'cnn-core/train'",
        "commands",
        loses=False,
        line="command name",
    ),
}

# Each way in which a command can come upon a fault is tried with every command, the other faults
# with the one that says most of them. (All faults meet all commands below, all at once.)
THOROUGH = (
    "SystemExit(0)",
    "prints when imported",
    "pin on a later core",
    "misspelt hook",
    "generator raises late",
    "shadows a first-party model",
    "shadows a command",
)


CASES = [
    pytest.param(fault, command, id=f"{kind}-{command}")
    for kind, fault in FAULTS.items()
    for command in (
        ALL if kind in THOROUGH else ["--help" if fault.hook == "commands" else "list-models"]
    )
]


def install(site, good_source, fault, **options):
    """Install the spoiled plugin."""
    site.stub_torch()
    options = {"name": fault.name, **options}
    site.add(good_source + fault.spoil, requires=fault.requires, target=fault.target, **options)


def install_good(site, good_source):
    """Install a sound plugin that offers the model "sound"."""
    source = good_source.replace('"tiny", **', '"sound", **')
    site.add(source, distribution="cnn-arch-good", name="good")


def warnings(outcome):
    """Return the warnings on stderr, where nothing else may be."""
    lines = outcome.err.splitlines()
    others = [line for line in lines if not line.startswith("warning: ")]
    assert not [line for line in others if NO_VIEW not in line], outcome.err
    assert not re.search(r"[^\n -~ -퟿…]", outcome.err), "unsafe on a terminal"
    return [line.removeprefix("warning: ") for line in lines if line not in others]


def listed(outcome):
    """Return the first column of a table, or the names in a JSON list."""
    if outcome.out.startswith("{"):
        content = json.loads(outcome.out)
        assert content["schema"] == 1
        return [row["name"] for row in content.get("models") or content["plugins"]]
    return [line.split()[0] for line in outcome.out.splitlines()[1:]]


def read(cnnzoo, site, *command, **variables):
    """Run a command that is to end well beside the plugins of `site`."""
    variables = {"CNNZOO_PLUGINS_DISABLE": OTHERS, **variables}
    outcome = cnnzoo(*command, site=site.path, **variables)
    assert outcome.code == 0, outcome.err
    return outcome


STARTS = {
    "--help": "Usage: ",
    "--version": "cnnzoo, version ",
    "list-models": "model ",
    "list-datasets": "dataset ",
    "list-recipes": "recipe ",
    "list-views": "view",
    "plugins": "name ",
}


@pytest.mark.parametrize(("fault", "command"), CASES)
def test_a_bad_plugin_costs_one_line_and_nothing_else(cnnzoo, site, good_source, fault, command):
    install(site, good_source, fault)
    install_good(site, good_source)
    outcome = read(cnnzoo, site, *command.split())
    lines = warnings(outcome)
    assert len(lines) == fault.touches(command), lines
    for line in lines:
        assert line.startswith(fault.line)
        assert re.search(fault.cause, line), line
        assert len(line) < 700
    assert outcome.out.startswith(STARTS.get(command, "{"))
    if command.startswith("list-models"):
        names = listed(outcome)
        assert {fault.lenet5, "lenet5_modern", "sound"} <= set(names)
        assert ("tiny" in names) is not fault.loses
    if command.startswith("plugins"):
        assert {"core", "lenet", "good", fault.name} <= set(listed(outcome))
    if command == "--help":
        assert "Train a model on a dataset" in outcome.out


def test_all_of_them_at_once(cnnzoo, site, good_source):
    origins = {}
    for number, (kind, fault) in enumerate(FAULTS.items()):
        distribution, target = f"cnn-arch-bad{number:02}", fault.target
        origins[kind] = distribution
        module = f"cnn_arch_bad{number:02}_plugin"
        site.add(
            good_source.replace('"tiny", **', f'"tiny{number:02}", **') + fault.spoil,
            distribution=distribution,
            name=f"bad{number:02}" if fault.name == "bad" else fault.name,
            requires=fault.requires,
            target=target and target.replace("cnn_arch_bad_plugin", module),
        )
    site.stub_torch()
    install_good(site, good_source)

    show = "show cnn-arch-lenet/lenet5_modern"
    for command in (*ALL, show):
        if command == show:
            (site.path / "torch.py").unlink()
        outcome = read(cnnzoo, site, *command.split())
        lines = warnings(outcome)
        for kind, fault in FAULTS.items():
            about = [line for line in lines if origins[kind] in line]
            assert len(about) == fault.touches(command), (kind, about)
        if command.startswith("list-models"):
            assert {"cnn-arch-lenet/lenet5", "lenet5_modern", "sound"} <= set(listed(outcome))
    assert "61,706" in outcome.out


def test_a_module_that_two_plugins_name_is_loaded_once(cnnzoo, site):
    site.add("", target="cnn_arch_lenet.plugin")
    outcome = read(cnnzoo, site, "list-models")
    [line] = warnings(outcome)
    assert line.startswith("plugin 'lenet' (cnn-arch-lenet 0.1.0): hooks: cnn_arch_lenet.plugin")
    assert "is already registered as cnn-arch-bad/bad" in line
    assert listed(outcome) == ["lenet5", "lenet5_modern"]


DISTRIBUTIONS = {
    "no METADATA": ("METADATA", None, r"plugin 'bad' \(unknown unknown\): import: ImportError"),
    "METADATA is no text": ("METADATA", b"Name: \xff", r"plugin 'bad' \("),
    "entry points without a value": ("entry_points.txt", b"[cnnzoo]\nbad\n", "entry_points.txt: "),
    "entry points are no text": (
        "entry_points.txt",
        b"[cnnzoo]\nbad = \xff",
        "entry_points.txt: ",
    ),
    "direct_url.json is no JSON": (
        "direct_url.json",
        b"{",
        "plugin 'bad' .*: import: ImportError",
    ),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("command", ["list-models", "plugins"])
def test_a_distribution_that_is_damaged(cnnzoo, site, good_source, kind, command):
    file, content, cause = DISTRIBUTIONS[kind]
    site.add("raise ImportError", requires=())
    install_good(site, good_source)
    path = site.path / "cnn_arch_bad-1.2.3.dist-info" / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    outcome = read(cnnzoo, site, command)
    [line] = warnings(outcome)
    assert re.search(cause, line), line
    expected = {"lenet5", "sound"} if command == "list-models" else {"lenet", "good"}
    assert expected <= set(listed(outcome))


def test_completion_is_not_disturbed(cnnzoo, site, good_source):
    install(site, good_source, FAULTS["hook raises"])
    site.add("print('hello'); 1 / 0", distribution="cnn-arch-worse", name="worse")
    asked = {
        "_CNNZOO_COMPLETE": "bash_complete",
        "COMP_WORDS": "cnnzoo show le",
        "COMP_CWORD": "2",
    }
    outcome = read(cnnzoo, site, **asked)
    assert outcome.out.split() == ["plain,lenet5", "plain,lenet5_modern"]
    assert outcome.err == ""


STRICT = {
    "ImportError": f"{BAD}: import: ImportError: libfoo.so.1",
    "hook raises": f"{BAD}: hook cnnzoo_models: ValueError: 7",
    "prints when imported": f"{BAD}: import: printed 'hello",
    "raises core's PluginError": f"{BAD}: import: PluginError: mine two lines",
    "shadows a first-party model": "model name 'lenet5' is ambiguous",
    "shadows a first-party plugin": "plugin name 'lenet' is claimed by",
}


@pytest.mark.parametrize("kind", STRICT)
def test_strict_stops_at_the_first_bad_plugin(cnnzoo, site, good_source, kind):
    install(site, good_source, FAULTS[kind])
    outcome = cnnzoo("list-models", site=site.path, CNNZOO_STRICT="1", CNNZOO_PLUGINS="bad,lenet")
    assert outcome.code == 6
    assert outcome.out == ""
    assert 1 <= len(outcome.err.splitlines()) <= 3
    assert outcome.err.startswith(f"error: {STRICT[kind]}")


def test_strict_is_quiet_when_all_is_well(cnnzoo, site, good_source):
    install_good(site, good_source)
    outcome = read(cnnzoo, site, "list-models", CNNZOO_STRICT="1")
    assert (outcome.err, listed(outcome)) == ("", ["lenet5", "lenet5_modern", "sound"])


# A plugin that is kept out is not imported: this one leaves a file when it is.
SPY = """
import pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
"""

KEPT_OUT = {
    "only another": ({"CNNZOO_PLUGINS": "lenet"}, []),
    "only others": ({"CNNZOO_PLUGINS": "viz, cnn-arch-lenet/lenet"}, []),
    "none": ({"CNNZOO_PLUGINS": ""}, []),
    "its model's name is not its own": ({"CNNZOO_PLUGINS": "lenet,tiny"}, []),
    "disabled": ({"CNNZOO_PLUGINS_DISABLE": "bad"}, []),
    "disabled by origin": ({"CNNZOO_PLUGINS_DISABLE": f"{OTHERS}, cnn-arch-bad/bad"}, []),
    "let in and disabled": ({"CNNZOO_PLUGINS": "bad", "CNNZOO_PLUGINS_DISABLE": "bad"}, []),
    "option": ({}, ["--no-plugin", "bad"]),
    "option by origin": ({}, ["--no-plugin=cnn-arch-bad/bad"]),
    "option twice": ({}, ["--no-plugin", "viz", "--no-plugin", "bad"]),
    "option and disabled": ({"CNNZOO_PLUGINS_DISABLE": OTHERS}, ["--no-plugin", "bad"]),
}


@pytest.mark.parametrize("how", KEPT_OUT)
def test_a_plugin_that_is_kept_out_is_never_imported(cnnzoo, site, good_source, how):
    variables, options = KEPT_OUT[how]
    site.add(good_source + SPY)
    outcome = read(cnnzoo, site, *options, "plugins", "--json", **variables)
    rows = {row["name"]: row for row in json.loads(outcome.out)["plugins"]}
    assert rows["bad"]["status"] == "blocked"
    assert rows["bad"]["reason"]
    assert rows["bad"]["hooks"] == []
    assert rows["core"]["status"] == "ok"
    assert not list(site.path.glob("*.imported"))
    assert "cnn-arch-bad" not in outcome.err


@pytest.mark.parametrize("command", ["--help", "list-models"])
def test_no_plugin_holds_for_help_and_lists(cnnzoo, site, good_source, command):
    site.add(good_source + SPY)
    outcome = read(cnnzoo, site, "--no-plugin", "bad", command)
    assert not list(site.path.glob("*.imported"))
    assert "tiny" not in outcome.out


@pytest.mark.parametrize("name", ["bad", "cnn-arch-bad/bad"])
def test_a_plugin_that_alone_is_let_in(cnnzoo, site, good_source, name):
    site.add(good_source + SPY)
    install_good(site, good_source)
    outcome = read(cnnzoo, site, "list-models", CNNZOO_PLUGINS=name)
    assert listed(outcome) == ["tiny"]
    assert list(site.path.glob("*.imported"))


def test_commands_of_core_import_no_plugin(cnnzoo, site, good_source):
    site.add(good_source + SPY)
    for command in ("--version", "train --help", "doctor --help", "evaluate --help"):
        read(cnnzoo, site, *command.split())
    assert not list(site.path.glob("*.imported"))


def test_both_of_two_plugins_with_one_name_work(cnnzoo, site, good_source):
    site.add(good_source, distribution="cnn-arch-a", name="twin")
    other = good_source.replace('"tiny", **', '"other", **')
    site.add(other, distribution="cnn-arch-b", name="twin")
    outcome = read(cnnzoo, site, "list-models")
    assert listed(outcome) == ["lenet5", "lenet5_modern", "other", "tiny"]
    line = "plugin name 'twin' is claimed by cnn-arch-a/twin and cnn-arch-b/twin"
    assert warnings(outcome) == [line]
    outcome = read(cnnzoo, site, "--no-plugin", "cnn-arch-a/twin", "list-models")
    assert listed(outcome) == ["lenet5", "lenet5_modern", "other"]
    assert outcome.err == ""


def test_a_model_that_two_plugins_offer_is_listed_by_both_origins(cnnzoo, site, good_source):
    site.add(good_source, distribution="cnn-arch-a", name="a")
    site.add(good_source, distribution="cnn-arch-b", name="b")
    both = ["cnn-arch-a/tiny", "cnn-arch-b/tiny"]
    for arguments in (["tiny"], ["t*", "--json"], ["*/tiny"]):
        outcome = read(cnnzoo, site, "list-models", *arguments)
        assert listed(outcome) == both
        line = f"model name 'tiny' is ambiguous: use '{both[0]}' or '{both[1]}'"
        assert warnings(outcome) == [line]


# doctor


CHECK = """
from cnn_core import Check
@hookimpl
def cnnzoo_doctor():
    return [Check(name="disk", check=check, summary="s")]
"""

PATIENTS = {
    "good": ("", "ok", ""),
    "content": (CHECK + "def check(): return ''", "ok", ""),
    "exits": (
        "import os; os._exit(3)",
        "broken",
        r"ended the process while loading \(exit code 3\)",
    ),
    "leaves": ("import os; os._exit(0)", "broken", "ended the process while loading"),
    "dies": ("import os; os.kill(os.getpid(), 9)", "broken", "ended the process while loading"),
    "hangs": ("import time\nwhile True: time.sleep(.1)", "broken", "did not load within 5 s"),
    "asks": ("input('name? ')", "broken", "EOFError"),
    "fails": (CHECK + "def check(): raise OSError('disk')", "faulty", "check disk: OSError: disk"),
    "gives up": (CHECK + "def check(): raise SystemExit(0)", "faulty", "disk: SystemExit: 0"),
    "advises": (CHECK + "def check(): return 'free some'", "faulty", "check disk: free some"),
    "prints": ("print('hello')", "faulty", "printed 'hello"),
    "writes": ("import os; os.write(1, b'hello\\n'); 1 / 0", "broken", "ZeroDiv.*printed 'hello'"),
    "prints at exit": ("import atexit; atexit.register(print, 'bye')", "faulty", "printed 'bye'"),
    "raises": ("raise ValueError('\\x1b[31mred')", "broken", r"ValueError: \\x1b\[31mred"),
    "misspelt": (hook("return []", "model"), "broken", "did you mean"),
    "late": (hook("yield model()\n    1 / 0"), "faulty", "hook cnnzoo_models: ZeroDivisionError"),
    "pinned": ("", "broken", "needs cnn-core>=99"),
}


def admit(site, good_source, patients):
    for number, name in enumerate(patients):
        source = good_source.replace('"tiny", **', f'"tiny{number}", **') + PATIENTS[name][0]
        site.add(
            source,
            distribution=f"cnn-arch-{name.replace(' ', '-')}",
            name=name,
            requires=("cnn-core>=99" if name == "pinned" else "cnn-core",),
        )


def test_doctor_finds_what_ails_each_and_goes_on(cnnzoo, site, good_source):
    site.stub_torch()
    admit(site, good_source, PATIENTS)
    outcome = cnnzoo(
        "doctor", "--json", "--timeout", "5", site=site.path, CNNZOO_PLUGINS_DISABLE=OTHERS
    )
    assert outcome.code == 6
    assert len(outcome.err.splitlines()) <= 3
    assert "Traceback" not in outcome.err
    report = json.loads(outcome.out)
    assert report["clashes"] == []
    assert report["environment"]["cnn-core"]
    found = {row["plugin"]: row for row in report["plugins"]}
    assert found.pop("cnn-arch-lenet/lenet")["status"] == "ok"
    blocked = [name for name, row in found.items() if row["status"] == "blocked"]
    assert sorted(found.pop(name)["plugin"].split("/")[1] for name in blocked) == sorted(
        OTHERS.split(",")
    )
    assert len(found) == len(PATIENTS)
    for name, (_, status, reason) in PATIENTS.items():
        origin = f"cnn-arch-{name.replace(' ', '-')}/{name}"
        row = found[origin]
        assert row["status"] == status, row
        assert re.search(reason, row["reason"]), row
        assert (origin in outcome.err) is (status != "ok")


def test_doctor_shows_tracebacks_when_asked(cnnzoo, site, good_source):
    site.stub_torch()
    admit(site, good_source, ["good", "raises"])
    brief = cnnzoo("doctor", site=site.path, CNNZOO_PLUGINS_DISABLE=f"{OTHERS},lenet")
    full = cnnzoo("doctor", "-v", site=site.path, CNNZOO_PLUGINS_DISABLE=f"{OTHERS},lenet")
    assert brief.code == full.code == 6
    assert brief.err == full.err
    assert "1 finding: cnn-arch-raises/raises" in full.err
    assert "Traceback" not in brief.out
    assert "Traceback (most recent call last)" in full.out
    assert "cnn_arch_raises_plugin.py" in full.out
    assert "\x1b" not in brief.out + full.out


def test_doctor_finds_contested_names(cnnzoo, site, good_source):
    site.stub_torch()
    site.add(good_source, distribution="cnn-arch-a", name="twin")
    site.add(good_source, distribution="cnn-arch-b", name="twin")
    outcome = cnnzoo("doctor", "--json", site=site.path, CNNZOO_PLUGINS_DISABLE=OTHERS)
    assert outcome.code == 6
    assert json.loads(outcome.out)["clashes"] == [
        "plugin name 'twin' is claimed by cnn-arch-a/twin and cnn-arch-b/twin",
        "model name 'tiny' is ambiguous: use 'cnn-arch-a/tiny' or 'cnn-arch-b/tiny'",
    ]


@pytest.mark.parametrize("options", [[], ["-v"], ["--json"]])
def test_doctor_is_content_with_sound_plugins(cnnzoo, site, good_source, options):
    site.stub_torch()
    admit(site, good_source, ["good", "content"])
    outcome = read(cnnzoo, site, "doctor", *options, CNNZOO_STRICT="1")
    assert outcome.err == ""
    for name in ("lenet", "good", "content"):
        assert re.search(rf"cnn-arch-{name}/{name}", outcome.out)


# Observers of a training


LOUD = """
@hookimpl
def cnnzoo_epoch_end(run, epoch):
    print("an observer's result")
    raise RuntimeError("no space for my log")

@hookimpl
def cnnzoo_fit_end(run):
    raise RuntimeError("called again")
"""

QUIET = """
import pathlib
LOG = pathlib.Path(__file__).with_suffix(".log")

def note(text):
    with LOG.open("a") as log:
        log.write(text + "\\n")

@hookimpl
def cnnzoo_fit_start(run, model, recipe): note(f"start {recipe.model}")

@hookimpl
def cnnzoo_step_end(step, loss): note(f"step {loss.ndim} {loss.requires_grad}")

@hookimpl
def cnnzoo_epoch_end(run, epoch, metrics): note(f"epoch {epoch} {'train/loss' in metrics}")

@hookimpl
def cnnzoo_checkpoint(run, epoch): note(f"checkpoint {epoch}")

@hookimpl
def cnnzoo_fit_end(run, metrics): note(f"end {'test/top1' in metrics}")
"""


def test_an_observer_that_raises_is_silenced_and_training_goes_on(
    cnnzoo, site, good_source, tmp_path
):
    site.add(
        good_source.replace('"tiny"', '"loud"') + LOUD, distribution="cnn-arch-a", name="loud"
    )
    site.add(good_source + QUIET, distribution="cnn-arch-b", name="quiet")
    run = tmp_path / "run"
    command = ("train", "lenet5_modern", "--data", "digits", "--epochs", "2", "--out", run)
    outcome = cnnzoo(*command, site=site.path, warm=True, CNNZOO_PLUGINS_DISABLE=OTHERS)
    assert outcome.code == 0, outcome.err
    assert outcome.out.split() == [str(run)]
    about = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert len(about) == 1
    assert re.match(
        r"warning: plugin 'loud' \(cnn-arch-a 1\.2\.3\): hook cnnzoo_epoch_end, "
        r"disabled for this run: RuntimeError: no space for my log",
        about[0],
    )
    assert "Traceback" not in outcome.err
    assert (run / "weights.safetensors").is_file()

    log = (site.path / "cnn_arch_b_plugin.log").read_text().splitlines()
    steps = [line for line in log if line.startswith("step")]
    assert set(steps) == {"step 0 False"}
    assert [line for line in log if line not in steps] == [
        "start lenet5_modern",
        "epoch 1 True",
        "checkpoint 1",
        "epoch 2 True",
        "checkpoint 2",
        "end True",
    ]


# What holds for every process


def test_a_spawned_worker_finds_third_party_models(site, good_source, tmp_path):
    install_good(site, good_source)
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, cnn_core\n"
        "def names(pattern): return cnn_core.list_models(pattern)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(*pool.apply(names, ['[!r]*']))\n",
        encoding="utf-8",
    )
    found = python(site, script)
    assert {"lenet5", "lenet5_modern", "sound"} <= set(found)


LIGHT = """
import importlib.metadata, sys
for entry in importlib.metadata.entry_points(group="cnnzoo", name=sys.argv[1]):
    entry.load()
heavy = "torch torchvision numpy matplotlib sklearn umap rich".split()
print("loaded", *[name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("name", ["lenet", "viz"])
def test_the_light_module_of_a_first_party_plugin_is_light(site, name):
    script = site.path / "light.py"
    script.write_text(LIGHT, encoding="utf-8")
    assert python(site, script, name) == ["loaded"]


def python(site, *arguments):
    """Run a script beside the plugins of `site`; return the words that it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CNNZOO")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**environment, "PYTHONPATH": str(site.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.split()


# Plugins that change global state


SETTINGS = """
import torch
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
"""
MUTATION = """
@hookimpl
def cnnzoo_commands():
    from cnn_core import get_spec
    object.__setattr__(get_spec("lenet5"), "params", 1)
    get_spec("lenet5").expected_failures["check_macs_are_as_claimed"] = "mine"
    object.__setattr__(get_spec("lenet5_modern").paper, "year", 3000)
    return []
"""
LATE = """
@hookimpl
def cnnzoo_step_end(run):
    steps.append(0)
    if len(steps) == 100:
        raise RuntimeError("at step 100")
steps = []
"""
VIEW = """
from cnn_core import ViewSpec
@hookimpl
def cnnzoo_views():
    render = "cnn_viz_view_plugin:draw"
    return [ViewSpec(name="broken", render=render, summary="s", needs=("run",))]
def draw(run):
    raise RuntimeError("no paint")
"""
NEWER = "from cnn_core import create_model_in_3d"

# What each does, what it is blamed for, and by which commands.
RUDE = {
    "settings": (
        SETTINGS,
        r"import: changed torch's default dtype, torch's grad mode \(undone\)",
        ".*",
    ),
    "lazy": ("", r"import of cnn_arch_lazy_net: changed torch's default dtype \(undone\)", "own"),
    "pin": ("", r"requirements: needs cnn-core>=99", ".*"),
    "newer": (NEWER, "import: ImportError: cannot import name 'create_model_in_3d'", ".*"),
    "mutation": (
        MUTATION,
        r"hook cnnzoo_commands: changed model 'cnn-arch-lenet/lenet5', "
        r"model 'cnn-arch-lenet/lenet5_modern' \(undone\)",
        "--help|plugins|no-such-command|check|viz|report",
    ),
    "late": (LATE, "hook cnnzoo_step_end, disabled for this run: .*: at step 100", "train"),
}
COMMANDS = (
    "--help",
    "--version",
    "list-models",
    "list-datasets --json",
    "list-recipes",
    "list-views",
    "plugins",
    "show lenet5",
    "show-data digits",
    "verify-data digits",
    "new cnn-arch-mine --out {tmp}/new",
    "train lenet5_modern --data digits --epochs 3 --out {tmp}/run",
    "evaluate {run}",
    "compare {run} {run}/../copy",
    "predict {run} {run}/../seven.png",
    "check cnn-arch-lenet",
    "viz curves {run} --out {tmp}/figures",
    "report {run} --format json",
)
# In these, torch is first imported by a plugin; in the others it is there already.
COLD = ("--help", "list-models", "train", "check")


def admit_rude(site, good_source):
    for name, (source, _, _) in RUDE.items():
        distribution = f"cnn-arch-{name}"
        target = f'"cnn_arch_{name}_net:tiny"' if name == "lazy" else '"tiny_net:tiny"'
        own = good_source.replace('"tiny", **', f'"{name}", **').replace('"tiny_net:tiny"', target)
        needs = ("cnn-core>=99",) if name == "pin" else ("cnn-core",)
        site.add(own + source, distribution=distribution, name=name, requires=needs)
    net = "import torch\ntorch.set_default_dtype(torch.float64)\ndef tiny(): 1 / 0\n"
    (site.path / "cnn_arch_lazy_net.py").write_text(net)
    install_good(site, good_source)
    (site.path / "tiny_net.py").write_text(SOUND_NET)


SOUND_NET = """
from torch import nn
def tiny(num_classes=10, in_channels=1):
    net = nn.Sequential()
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(64 * in_channels, num_classes))
    return net
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained beside sound plugins only, twice, and an image."""
    from PIL import Image

    from cnn_core import load_dataset, train

    folder = tmp_path_factory.mktemp("trained")
    for name in ("run", "copy"):
        train("lenet5_modern", "digits", epochs=3, out=folder / name, progress=False)
    image = load_dataset("digits").split("test").images[0, 0].numpy()
    Image.fromarray(image).save(folder / "seven.png")
    return folder / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_rude_plugins_are_named_once_and_change_nothing(
    cnnzoo, site, good_source, tmp_path, trained, command
):
    words = command.format(tmp=tmp_path, run=trained).split()
    disabled = {"CNNZOO_PLUGINS_DISABLE": OTHERS.replace("viz", "none")}
    admit_rude(site, good_source)
    outcome = cnnzoo(*words, site=site.path, warm=words[0] not in COLD, **disabled)
    blame = {name: cause for name, (_, cause, where) in RUDE.items() if re.match(where, command)}
    if command.split()[0] in ("--version", "compare"):  # these load no plugin
        blame = {}
    assert outcome.code == 0, outcome.err
    for name, cause in blame.items():
        about = [line for line in outcome.err.splitlines() if f"plugin '{name}'" in line]
        assert len(about) == 1, (name, about)
        assert re.search(cause, about[0]), about
    for line in outcome.err.splitlines():
        if line.startswith("warning: plugin"):
            assert re.match(r"warning: plugin '(\w+)'", line).group(1) in blame, line
    assert "Traceback" not in outcome.err


def test_changes_of_rude_plugins_are_undone(site, good_source):
    admit_rude(site, good_source)
    code = (
        "import logging; logging.disable()\n"
        "from cnn_core import create_model, get_spec, registry\n"
        "registry.catalogues()\n"
        "import torch\n"
        "spec = get_spec('lenet5')\n"
        "print(spec.params, dict(spec.expected_failures), spec.paper.year)\n"
        "print(torch.ones(1, requires_grad=True).mul(2).requires_grad)\n"
        "model = create_model('lenet5_modern')\n"
        "print(tuple(model(torch.zeros(1, 1, 32, 32)).shape))\n"
        "try: create_model('lazy')\n"
        "except Exception: pass\n"
        "print(tuple(create_model('sound')(torch.zeros(1, 1, 8, 8)).shape))\n"
    )
    done = site.run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["60000 {} 1998", "True", "(1, 10)", "(1, 10)"]


REPLACED = {
    "eager": (
        "import torch\ntorch.nn.functional.relu = torch.relu = torch.sigmoid\n",
        "",
        "import",
    ),
    "hook": (
        hook("import torch; torch.Tensor.add = torch.Tensor.mul; return []", "views"),
        "",
        "torch: replaces torch.Tensor.add",
    ),
    "net": ("", "import torch\ntorch.nn.Conv2d.forward = len\n", "torch.nn.Conv2d.forward"),
    "sound": ("", SOUND_NET, ""),
    "quits": ("", "raise SystemExit(0)", ""),
}


def test_doctor_names_plugins_that_replace_functions_of_torch(cnnzoo, site, good_source):
    """When they are imported, in a hook, or when the code of their networks is imported."""
    for name, (source, net, _) in REPLACED.items():
        target = good_source.replace('"tiny", **', f'"{name}", **')
        target = target.replace('"tiny_net:', f'"{name}_net:')
        site.add(target + source, distribution=f"cnn-arch-{name}", name=name)
        (site.path / f"{name}_net.py").write_text(net)
    done = cnnzoo("doctor", "--json", site=site.path, CNNZOO_PLUGINS=",".join(REPLACED))
    assert done.code == 6
    report = json.loads(done.out)
    found = {row["plugin"].split("/")[1]: row for row in report["plugins"]}
    for name, (_, _, reason) in REPLACED.items():
        assert found[name]["status"] == ("faulty" if reason else "ok"), found[name]
        assert reason in found[name]["reason"]
        assert (f"cnn-arch-{name}/{name}" in done.err) is bool(reason)
    assert report["clashes"] == []


def test_functions_that_torch_wraps_itself_are_not_reported():
    """It does so when it compiles."""
    code = (
        "import torch\n"
        "from cnn_core.cli.plugin_report import replaced, torch_functions\n"
        "before = torch_functions()\n"
        "import torchvision, torch._dynamo, torch.export\n"
        "print(len(before) > 1000, torch.manual_seed, replaced(before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True ")
    assert done.stdout.endswith(" []\n")


def test_a_deprecated_hook_is_reported_and_still_called(
    monkeypatch, caplog, site, good_source, tmp_path
):
    """With a hook made up for this test: no real one is deprecated."""
    from types import ModuleType

    from cnn_core import hookspecs
    from cnn_core.plugins import Plugins
    from cnn_core.plugins.discovery import Plugin

    def cnnzoo_pictures(run):
        """Return images."""

    warning = DeprecationWarning("cnnzoo_pictures goes in 0.3: use cnnzoo_views")
    marked = hookspecs.hookspec(warn_on_impl=warning)(cnnzoo_pictures)
    monkeypatch.setattr(hookspecs, "cnnzoo_pictures", marked, raising=False)
    module = ModuleType("old_plugin")
    exec(
        "from cnn_core import hookimpl\n@hookimpl\ndef cnnzoo_pictures(run): return [run]",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, "old_plugin", module)
    found = Plugins([Plugin("old", "cnn-viz-old", "1.2.3", "old_plugin")])
    assert [r.message for r in caplog.records] == [
        "plugin 'old' (cnn-viz-old 1.2.3): hooks: cnnzoo_pictures goes in 0.3: use cnnzoo_views "
        "(for details: cnnzoo doctor -v)"
    ]
    assert [result for _, result in found.call("cnnzoo_pictures", run=3)] == [[3]]


# Plugins that change settings of torch while they work, not while they are imported


WATCHERS = {
    hook: f"""
from cnn_core import hookimpl
@hookimpl
def cnnzoo_{hook}(run):
    import torch
    torch.set_default_dtype(torch.float64)
"""
    for hook in ("fit_start", "step_end", "epoch_end", "checkpoint", "fit_end")
}


def test_observers_that_change_settings_are_named_once_and_change_no_run(
    cnnzoo, site, tmp_path, trained
):
    for hook, source in WATCHERS.items():
        name = hook.replace("_", "-")
        site.add(source, distribution=f"cnn-track-{name}", name=name)
    run = tmp_path / "run"
    command = ("train", "lenet5_modern", "--data", "digits", "--epochs", "3", "--out", run)
    done = cnnzoo(*command, site=site.path, warm=True)
    assert done.code == 0, done.err
    for hook in WATCHERS:
        name = hook.replace("_", "-")
        (line,) = [line for line in done.err.splitlines() if f"plugin '{name}'" in line]
        assert f"hook cnnzoo_{hook}: changed torch's default dtype (undone)" in line
    same = [(path / "weights.safetensors").read_bytes() for path in (run, trained)]
    assert same[0] == same[1]


class Late:
    """Changes a setting in the middle of an epoch."""

    def cnnzoo_step_end(self, step):
        import torch

        if step == 3:
            torch.set_grad_enabled(False)


class Bystander:
    """Observes the same hook."""

    def cnnzoo_step_end(self, step):
        pass


def test_a_change_at_any_step_is_undone_at_once_and_of_its_plugin_alone(caplog):
    import torch

    from cnn_core.plugins import Observers

    observers = Observers(None, [Bystander(), Late(), Bystander()])
    for epoch in (1, 2):
        for step in range(6):
            observers.notify("step_end", run=None, epoch=epoch, step=step, loss=None)
            assert torch.is_grad_enabled()
    (line,) = caplog.messages
    assert "plugin 'Late'" in line
    assert "hook cnnzoo_step_end: changed torch's grad mode (undone)" in line


def test_a_constructor_that_changes_a_setting_is_named_and_undone(site, good_source):
    site.add(good_source)
    change = "    import torch\n    torch.set_default_device('meta')\n"
    head = "def tiny(num_classes=10, in_channels=1):\n"
    (site.path / "tiny_net.py").write_text(SOUND_NET.replace(head, head + change))
    code = (
        "import torch; from cnn_core import create_model\n"
        "for _ in range(2): create_model('tiny')\n"
        "print(tuple(create_model('lenet5_modern')(torch.zeros(1, 1, 32, 32)).shape))\n"
    )
    done = site.run(code)
    assert (done.returncode, done.stdout) == (0, "(1, 10)\n"), done.stderr
    assert done.stderr.count("plugin 'bad'") == 1
    assert "building of tiny: changed torch's default device (undone)" in done.stderr


def test_a_view_that_changes_a_setting_is_named_and_undone(
    cnnzoo, site, good_source, trained, tmp_path
):
    draw = (
        "    import torch; from matplotlib.figure import Figure\n"
        "    torch.use_deterministic_algorithms(True)\n"
        "    return Figure()\n"
    )
    source = "from cnn_core import hookimpl\n" + VIEW.replace(
        '    raise RuntimeError("no paint")\n', draw
    )
    site.add(source, distribution="cnn-viz-view", name="view", module="cnn_viz_view_plugin")
    figures = tmp_path / "figures"
    done = cnnzoo("viz", "broken", trained, "--out", figures, site=site.path, warm=True)
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if "plugin 'view'" in line]
    assert "drawing of broken: changed torch's deterministic mode (undone)" in line
