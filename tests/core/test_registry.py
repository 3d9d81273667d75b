"""Names to specs: order, patterns, aliases, contested and missing names, and what is loaded."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
import types

import pytest

from cnn_core import create_model, get_spec, list_models, registry
from cnn_core.builtin import plugin as builtin
from cnn_core.cli import main
from cnn_core.errors import PluginError, SpecError, UnknownNameError, UsageError
from cnn_core.plugins import Observers, loader
from cnn_core.plugins.discovery import Plugin
from cnn_core.registry.catalogue import _fault_in, natural
from cnn_core.registry.names import ambiguous_defaults, recorded_name
from cnn_core.specs import Check, CommandSpec, ViewSpec, WeightsSpec
from cnn_core.testing.case import Case
from cnn_core.testing.spec_checks import check_recipes_are_sound
from cnn_core.training.setup import find_recipe


@pytest.fixture(autouse=True)
def without_a_trace(command_leaves_no_trace):
    """`main` runs in this process."""


def models(*fields):
    """Return the source of a hook that offers models with these fields."""
    offers = ", ".join(f"model({field})" for field in fields)
    return f"@hookimpl\ndef cnnzoo_models(): return [{offers}]\n"


# Names


def test_natural_order_knows_numbers():
    names = ["resnet18", "resnet20_cifar", "resnet50", "resnet50_v1", "resnet110_cifar", "vgg11"]
    for seed in range(5):
        shuffled = random.Random(seed).sample(names, len(names))
        assert sorted(shuffled, key=natural) == names


def test_names_are_sorted_whatever_the_order_of_plugins(zoo, plugin):
    a = plugin("a", models("'net10'", "'net9'"))
    b = plugin("b", models("'alpha'", "'net9_v2'"))
    for order in ((a, b), (b, a)):
        zoo(*order)
        assert list_models() == ["alpha", "net9", "net9_v2", "net10"]


def test_patterns_and_tasks_choose(zoo, plugin):
    zoo(plugin("a", models("'net1'", "'net2', task='segmentation'", "'other'")))
    assert list_models("net*") == ["net1", "net2"]
    assert list_models("net?", task="segmentation") == ["net2"]
    assert list_models(task="classification") == ["net1", "other"]
    assert list_models("NET*") == []


def test_an_alias_and_an_origin_lead_to_the_same_spec(zoo, plugin):
    zoo(plugin("a", models("'net', aliases=('network', 'netz')")))
    assert list_models() == ["net"]
    for name in ("net", "network", "netz", "cnn-arch-a/net", "cnn-arch-a/netz"):
        assert get_spec(name).name == "net"


TINY_NET = """
from collections import OrderedDict
from torch import nn

def tiny(num_classes, in_channels):
    head = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
    return nn.Sequential(OrderedDict(head=head))
"""


def test_a_contested_name_belongs_to_neither_and_each_is_reachable(
    zoo, plugin, monkeypatch, capsys
):
    net = types.ModuleType("tiny_net")
    exec(TINY_NET, vars(net))
    monkeypatch.setitem(sys.modules, "tiny_net", net)
    zoo(plugin("a"), plugin("b"))

    with pytest.raises(PluginError, match="'cnn-arch-a/tiny' and 'cnn-arch-b/tiny'"):
        get_spec("tiny")
    assert main(["show", "tiny"]) == 6
    error = capsys.readouterr().err.splitlines()
    assert len(error) <= 3
    assert "error: model 'tiny' is ambiguous: 'cnn-arch-a/tiny' and 'cnn-arch-b/tiny'" in error

    for origin in ("cnn-arch-a", "cnn-arch-b"):
        entry = registry.models().entry(f"{origin}/tiny")
        assert entry.plugin.distribution == origin
        assert create_model(f"{origin}/tiny").head[1].out_features == 10
        assert main(["show", f"{origin}/tiny"]) == 0
        assert f"from {origin} 1.2.3" in capsys.readouterr().out


# Contested names that a recipe or a run decides


RECIPES = """
from cnn_core import RecipeSpec
@hookimpl
def cnnzoo_recipes():
    fields = dict(summary="s", origin="ours", default=True)
    return [RecipeSpec(name=n, model="tiny", dataset="digits", settings={"lr": lr}, **fields)
            for n, lr in NAMES.items()]
"""
ONLY_RECIPES = "from cnn_core import hookimpl\n"
OTHER_DIGITS = """
from cnn_core import hookimpl
from cnn_core.builtin.datasets import DIGITS
@hookimpl
def cnnzoo_datasets(): return [DIGITS]
"""


def recipes(**names):
    return f"NAMES = {names}\n{RECIPES}"


@pytest.mark.parametrize("model", ["tiny", "cnn-arch-b/tiny", "b_net"])
@pytest.mark.parametrize("data", ["digits", "cnn-core/digits"])
def test_a_pair_has_its_recipe_by_whatever_names(zoo, plugin, model, data):
    zoo(plugin("b", models("'tiny', aliases=('b_net',)") + recipes(good=0.5)))
    found = find_recipe(model, data, None, {})
    assert (found.model, found.data, found.lr) == ("tiny", "digits", 0.5)
    assert find_recipe(model, "mnist", None, {}).lr != 0.5


def test_a_contested_pair_has_its_own_plugins_recipe(zoo, plugin):
    a, b = plugin("a", recipes(a=0.25)), plugin("b", recipes(b=0.5))
    c = plugin("c", source=OTHER_DIGITS)
    for one in (a, b):  # which say what they need: cnn-core, whose digits are meant
        one.entry = types.SimpleNamespace(dist=types.SimpleNamespace(requires=["cnn_core~=0.1"]))
    zoo(a, b, c)
    assert find_recipe("cnn-arch-a/tiny", "cnn-core/digits", None, {}).lr == 0.25
    assert find_recipe("cnn-arch-b/tiny", "cnn-core/digits", None, {}).lr == 0.5
    assert find_recipe("cnn-arch-b/tiny", "cnn-arch-c/digits", None, {}).lr not in (0.25, 0.5)
    named = find_recipe(None, None, "a", {})
    assert (named.model, named.data) == ("cnn-arch-a/tiny", "cnn-core/digits")
    assert ambiguous_defaults() == []


def test_the_default_recipe_is_the_models_own_and_of_others_nobodys(zoo, plugin):
    own = plugin("own", recipes(zzz=0.5))
    a = plugin("a", recipes(aaa=1e-9), source=ONLY_RECIPES)
    b = plugin("b", recipes(bbb=1e-8), source=ONLY_RECIPES)
    zoo(own, a, b)
    assert find_recipe("tiny", "digits", None, {}).lr == 0.5
    assert ambiguous_defaults() == []
    zoo(plugin("own"), a)
    assert find_recipe("tiny", "digits", None, {}).lr == 1e-9
    zoo(plugin("own"), a, b)
    with pytest.raises(PluginError, match="'cnn-arch-a/aaa' and 'cnn-arch-b/bbb'"):
        find_recipe("tiny", "digits", None, {})
    assert find_recipe("tiny", "digits", "cnn-arch-b/bbb", {}).lr == 1e-8
    (line,) = ambiguous_defaults()
    assert line.startswith("default recipe of tiny on digits is ambiguous: use --recipe ")


def test_a_recipe_of_another_is_no_fault_of_the_models_own(zoo, plugin):
    own = plugin("own", recipes(good=0.5))
    zoo(own, plugin("a", recipes(bad="much"), source=ONLY_RECIPES))
    check_recipes_are_sound(Case(registry.models().entry("tiny")))


@pytest.mark.parametrize("name", ["tiny", "cnn-arch-b/tiny", "b_net"])
def test_what_is_recorded_is_found_again_when_its_name_is_contested(zoo, plugin, name):
    b = plugin("b", models("'tiny', aliases=('b_net',)"))
    recorded = {"distribution": "cnn-arch-b", "version": "1.2.3"}
    zoo(b)
    assert recorded_name(registry.models(), name, recorded, "run") == "tiny"
    zoo(plugin("a"), b)
    assert recorded_name(registry.models(), name, recorded, "run") == "cnn-arch-b/tiny"
    zoo(plugin("a"))
    with pytest.raises(PluginError, match=r"is from cnn-arch-b 1\.2\.3, which is not"):
        recorded_name(registry.models(), name, recorded, "run")
    assert recorded_name(registry.models(), name, None, "an old run") == name


WRONG = {
    "return [model(aliases=('Le Net\\x1b[31m',))]": r"aliases = \('Le Net\\x1b\[31m',\), exp",
    "return [model(paper=Paper(title=None, authors='a', year=1, url='u'))]": "title = None, exp",
    "return [model(paper=Paper(title='t', authors='a', year='x', url='u'))]": "year = 'x', exp",
    "return {model()}": "TypeError: specs are not hashable: return a list, not a set or dict keys",
    "return [{}[[]]]": "TypeError: .*unhashable type: 'list'",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_wrong_result_of_a_hook_is_reported(zoo, plugin, caplog, body):
    zoo(plugin("a", f"@hookimpl\ndef cnnzoo_models(): {body}\n"))
    assert list_models() == []
    [line] = caplog.messages
    assert re.search(WRONG[body], line), line


# Names that nothing answers to


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("tinny", "'tiny'"), ("TINY", "'tiny'"), ("lenet-5", "'lenet5'"), ("tiny2", "'tiny'")],
)
def test_an_unknown_name_suggests_the_nearest(zoo, plugin, capsys, name, nearest):
    zoo(plugin("a"))
    with pytest.raises(
        UnknownNameError, match=f"unknown model '{name}', did you mean .*{nearest}"
    ):
        get_spec(name)
    assert main(["show", name]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "see: cnnzoo list-models"


def test_a_name_like_no_other_suggests_nothing(zoo, plugin):
    zoo(plugin("a"))
    with pytest.raises(UnknownNameError, match=r"^unknown model 'qqqq'\nsee: cnnzoo list"):
        get_spec("qqqq")
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit', did you mean 'digits'"):
        registry.datasets().get("digit")
    with pytest.raises(UnknownNameError, match=r"unknown model '\\x1b\[2J'"):
        get_spec("\x1b[2J")


@pytest.mark.parametrize("name", ["lenet5", "cnn-arch-lenet/lenet5"])
def test_a_known_model_that_is_not_installed_names_its_package(zoo, capsys, name):
    zoo()
    with pytest.raises(UsageError, match=r"is not installed\npip install cnn-arch-lenet$"):
        get_spec(name)
    assert main(["show", name]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: model '{name}' is not installed",
        "pip install cnn-arch-lenet",
    ]


def test_a_known_command_and_view_say_what_to_install(zoo, capsys):
    zoo()
    assert main(["report", "run"]) == 2
    assert "pip install cnn-viz" in capsys.readouterr().err
    with pytest.raises(UsageError, match="pip install cnn-viz"):
        registry.views().get("gradcam")


REASONS = {
    "broken": (
        "raise ImportError('libfoo')",
        "is broken: plugin 'lenet' .*import: ImportError: l",
    ),
    "faulty": (
        "@hookimpl\ndef cnnzoo_models(): 1 / 0",
        "is faulty: .*hook cnnzoo_models: ZeroDiv",
    ),
    "older": (models("'lenet4'"), "does not provide it in the installed version"),
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("name", ["lenet5", "cnn-arch-lenet/lenet5"])
def test_a_known_model_of_a_broken_plugin_gives_the_reason(
    zoo, monkeypatch, good_source, capsys, kind, name
):
    more, reason = REASONS[kind]
    found = Plugin("lenet", "cnn-arch-lenet", "0.1.0", "broken_lenet")
    import_module = loader.importlib.import_module

    def imported(target):
        if target != "broken_lenet":
            return import_module(target)
        module = types.ModuleType(target)
        exec(good_source + more, vars(module))
        return module

    monkeypatch.setattr(loader.importlib, "import_module", imported)
    zoo(found)
    with pytest.raises(PluginError, match=reason):
        get_spec(name)
    assert main(["show", name]) == 6
    error = capsys.readouterr().err
    assert "cnn-arch-lenet" in error
    assert len(error.splitlines()) <= 3


def test_a_known_model_of_a_blocked_plugin_gives_the_reason(forget, monkeypatch, capsys):
    monkeypatch.setenv("CNNZOO_PLUGINS", "")
    forget()
    try:
        with pytest.raises(PluginError, match="lenet, which is blocked: not in CNNZOO_PLUGINS="):
            get_spec("lenet5")
        assert main(["show", "lenet5"]) == 6
        monkeypatch.delenv("CNNZOO_PLUGINS")
        monkeypatch.setenv("CNNZOO_PLUGINS_DISABLE", "cnn-arch-lenet/lenet")
        forget()
        with pytest.raises(PluginError, match="which is blocked: disabled by"):
            get_spec("cnn-arch-lenet/lenet5")
    finally:
        forget()
    assert "cnn-arch-lenet, which is blocked" in capsys.readouterr().err


TARGETS = {
    "module missing": ("no_such_net:tiny", "cannot import no_such_net:tiny: ModuleNotFoundError"),
    "name missing": ("json:tiny", "cannot import json:tiny: AttributeError"),
    "module exits": ("bad_net:tiny", "cannot import bad_net:tiny: SystemExit: 0"),
    "module raises": (
        "red_net:tiny",
        r"cannot import red_net:tiny: ValueError: \\x1b\[31m two lines",
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_is_not_there_names_plugin_and_distribution(
    zoo, plugin, tmp_path, monkeypatch, capsys, kind
):
    target, cause = TARGETS[kind]
    (tmp_path / "bad_net.py").write_text("raise SystemExit(0)", encoding="utf-8")
    (tmp_path / "red_net.py").write_text("raise ValueError('\\x1b[31m two\\nlines')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    zoo(plugin("a", models(f"target='{target}'")))
    where = r"model 'tiny' of plugin 'a' \(cnn-arch-a 1\.2\.3\): "
    with pytest.raises(PluginError, match=where + cause):
        create_model("tiny")
    assert main(["show", "tiny"]) == 6
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[1].endswith("pip uninstall cnn-arch-a")


# Specs


class Odd:
    """What cannot even be printed."""

    def __repr__(self):
        raise ValueError


ODD = (
    None,
    3,
    -1,
    float("nan"),
    "x",
    b"x",
    (),
    ["a"],
    {},
    {(1, 2): 3},
    types.MappingProxyType({"a": 1}),
    object(),
    Odd(),
)


def sound_specs():
    yield from (get_spec("lenet5"), registry.recipes().entries[0].spec, builtin.DATASETS[0])
    yield builtin.cnnzoo_metrics()[0]
    yield ViewSpec(name="v", render="a:b", summary="s", needs=("run",))
    yield CommandSpec(name="c", target="a:b", summary="s")
    yield Check(name="k", check=str, summary="s")
    yield WeightsSpec(
        name="m:w",
        model="m",
        summary="s",
        data="d",
        num_classes=2,
        classes=("a", "b"),
        url="https://example.org/w.pth",
        sha256="0" * 64,
        bytes=1,
        licence="l",
        source="https://example.org",
        input_size=(8, 8),
        resize=9,
        mean=(0.5,),
        std=(0.5,),
    )


def test_no_value_of_any_field_gets_past_the_spec_and_breaks_a_list():
    accepted = refused = 0
    for spec in sound_specs():
        assert _fault_in([spec], type(spec)) == ""
        for field in dataclasses.fields(spec):
            for value in ODD:
                try:
                    changed = dataclasses.replace(spec, **{field.name: value})
                except Exception:
                    refused += 1
                    continue
                if _fault_in([changed], type(spec)):
                    refused += 1
                    continue
                accepted += 1
                entry = registry.Entry(changed, Plugin("a", "cnn-arch-a", "1", "a"))
                text = json.dumps(entry.as_dict("a"), allow_nan=False, default=str)
                assert json.loads(text)["distribution"] == "cnn-arch-a"
    assert accepted > 20
    assert refused > 500


def test_a_spec_error_names_field_value_and_what_is_expected():
    with pytest.raises(SpecError) as caught:
        dataclasses.replace(get_spec("lenet5"), params=-1)
    assert str(caught.value) == "model 'lenet5': params = -1, expected a positive integer"


# What is loaded


HALF = {
    "misspelt": "@hookimpl\ndef cnnzoo_model(): return []",
    "unknown argument": "@hookimpl\ndef cnnzoo_views(size): return []",
    "unmarked": "def cnnzoo_views(): return []",
}


@pytest.mark.parametrize("kind", HALF)
def test_nothing_is_left_of_a_plugin_whose_hooks_are_wrong(zoo, plugin, kind):
    bad = plugin("bad", HALF[kind] + "\n@hookimpl\ndef cnnzoo_fit_end(run): pass\n")
    loaded = zoo(bad, plugin("good", models("'sound'")))
    assert bad.status == "broken"
    assert [p.name for p in loaded.loaded] == ["core", "good"]
    assert bad.module is not None
    for caller in vars(loaded.manager.hook).values():
        assert all(impl.plugin is not bad.module for impl in caller.get_hookimpls())
    assert not loaded.manager.is_registered(bad.module)
    loaded.manager.check_pending()
    assert list_models() == ["sound"]


def test_two_entry_points_of_one_origin_do_not_unload_each_other(zoo, plugin):
    first, second = plugin("a"), plugin("b")
    second.distribution, second.name = first.distribution, first.name
    zoo(first, second)
    assert (first.status, second.status) == ("ok", "broken")
    assert list_models() == ["tiny"]


def test_an_error_in_the_hooks_of_a_module_is_not_blamed_on_its_import(
    zoo, plugin, tmp_path, monkeypatch
):
    source = "def __dir__(): raise RuntimeError('no attributes today')"
    (tmp_path / "dynamic_plugin.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    dynamic = Plugin("dynamic", "cnn-arch-dynamic", "1", "dynamic_plugin")
    zoo(dynamic, plugin("good"))
    [fault] = dynamic.faults
    assert (fault.stage, fault.cause) == ("hooks", "RuntimeError: no attributes today")
    assert dynamic.status == "broken"
    assert list_models() == ["tiny"]


def test_a_plugin_cannot_ask_for_plugins_while_it_is_loaded(zoo, plugin, tmp_path, monkeypatch):
    source = "import cnn_core\ncnn_core.list_models()"
    (tmp_path / "asking_plugin.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    asking = Plugin("asking", "cnn-arch-asking", "1", "asking_plugin")
    loaded = zoo(asking, plugin("good"))
    [fault] = asking.faults
    assert "plugins() was called while plugins are being loaded" in fault.cause
    assert loader.plugins() is loaded
    assert list_models() == ["tiny"]


def test_hooks_of_a_plugin_are_known_by_name(zoo, plugin):
    a = plugin("a", "@hookimpl\ndef cnnzoo_fit_end(run): pass\n")
    assert zoo(a).hooks(a) == ["cnnzoo_fit_end", "cnnzoo_models"]
    assert a.origin == "cnn-arch-a/a"


# Observers


def observer(body="pass"):
    return (
        "heard = []\n@hookimpl\ndef cnnzoo_epoch_end(epoch): heard.append(epoch)\n"
        f"@hookimpl\ndef cnnzoo_fit_end(run):\n    heard.append('end')\n    {body}\n"
    )


def test_observers_are_called_in_the_order_of_their_origins(zoo, plugin):
    calls = []
    found = [plugin(name, observer()) for name in ("a", "b", "c")]
    loaded = zoo(*found)
    for each in found:
        each.module.heard = types.SimpleNamespace(
            append=lambda epoch, name=each.name: calls.append((name, epoch))
        )
    Observers(loaded).notify("epoch_end", run=None, epoch=1, metrics={})
    Observers(loaded).notify("checkpoint", run=None, epoch=1)
    assert calls == [("a", 1), ("b", 1), ("c", 1)]


@pytest.mark.parametrize("error", ["1 / 0", "raise SystemExit(0)", "raise GeneratorExit"])
def test_one_observer_that_raises_is_silenced_for_the_run_alone(zoo, plugin, caplog, error):
    bad, good = plugin("bad", observer(error)), plugin("good", observer())
    loaded = zoo(bad, good)
    for run in (1, 2):
        caplog.clear()
        observers = Observers(loaded)
        for hook, more in (("epoch_end", {"epoch": run, "metrics": {}}), ("fit_end", {})) * 2:
            observers.notify(hook, run=None, **{"metrics": {}, **more})
        [line] = caplog.messages
        assert "plugin 'bad' (cnn-arch-bad 1.2.3): hook cnnzoo_fit_end, disabled" in line
    assert bad.module.heard == [1, "end", 2, "end"]
    assert good.module.heard == [1, "end", 1, "end", 2, "end", 2, "end"]


def test_what_an_observer_prints_is_no_result(zoo, plugin, capsys):
    Observers(zoo(plugin("a", observer("print('hello')")))).notify("fit_end", run=None, metrics={})
    assert capsys.readouterr() == ("", "hello\n")
