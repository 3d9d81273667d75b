"""The conformance kit: over every architecture here, and on networks that break its rules."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_core.testing import (
    CHECKS,
    SLOW,
    Case,
    cases_of,
    network_checks,
    parametrize_with_checks,
    run_checks,
    spec_checks,
)

FIRST_PARTY = sorted(
    {e.plugin.distribution for _, e in registry.models() if "cnn-arch-" in e.plugin.distribution}
)
LARGE = 300_000  # parameters; larger ones are checked in full by `make test-slow`,
# here in what costs little and differs between networks of one plugin, but for the smallest of
# each family. Their parameters and MACs are in tests/arch/test_every_architecture.py.
LIGHT = ("import_leaves", "docstring", "requirement", "name", "departures", "recipes")


@pytest.mark.parametrize("distribution", FIRST_PARTY)
def test_every_check_holds(distribution):
    failed, cases = [], cases_of(distribution)
    smallest = min(case.spec.params for case in cases)
    for case in cases:
        large = case.spec.params > max(LARGE, smallest)
        for check in CHECKS:
            if large and not any(word in check.__name__ for word in LIGHT):
                continue
            excuse = case.spec.expected_failures.get(check.__name__)
            try:
                check(case)
            except Exception as error:
                if not excuse:
                    failed.append(f"{case.spec.name} {check.__name__}: {error}")
            else:
                if excuse:
                    failed.append(f"{case.spec.name} {check.__name__}: passes, against {excuse}")
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", FIRST_PARTY)
def test_every_check_holds_the_slow_ones_too(distribution):
    failed = [r for r in run_checks(distribution, slow=True) if r.outcome == "failed"]
    assert not failed


@parametrize_with_checks("cnn-arch-lenet")
def test_the_decorator_gives_a_test_for_each_check(check, case):
    check(case)


def test_there_are_at_least_25_checks_with_names_of_their_own():
    names = {check.__name__ for check in CHECKS + SLOW}
    assert len(names) == len(CHECKS + SLOW) >= 25
    assert all(check.__doc__ for check in CHECKS + SLOW)


class Wrong(nn.Module):
    """A network with many faults."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 4, 3)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(4, 10)
        self.noise = torch.ones(1) * torch.rand(1)

    def forward(self, x):
        x = self.c1(x).mean((2, 3))
        return self.fc(x - x.mean(0))


class Spoiled(Case):
    """lenet5's spec, with another network behind it."""

    def build(self, **options):
        return Wrong()


@pytest.fixture
def spoiled():
    entry = registry.models().entry("lenet5")
    spec = dataclasses.replace(entry.spec, params=1, macs=1, stages=("fc", "c1"), cam_stage="fc")
    return Spoiled(dataclasses.replace(entry, spec=spec))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (spec_checks.check_parameters_are_as_claimed, "parameters"),
        (spec_checks.check_macs_are_as_claimed, "MACs"),
        (spec_checks.check_stages_run_in_order, r"\['c1', 'fc'\]"),
        (
            spec_checks.check_table_has_the_sizes_of_the_maps,
            "c1 has maps of 30x30, not in the table",
        ),
        (
            network_checks.check_images_too_small_raise_an_error_with_the_smallest_size,
            "accepts 31 pixels",
        ),
        (network_checks.check_classes_and_channels_are_honoured, "2 classes give"),
        (
            network_checks.check_invalid_values_raise_errors_that_quote_them,
            "accepts num_classes = 0",
        ),
        (network_checks.check_the_last_layer_can_be_replaced, "is not a"),
        (network_checks.check_seed_determines_the_weights, "differ"),
        (network_checks.check_images_do_not_influence_each_other, "differs by"),
        (network_checks.check_gradient_reaches_every_parameter, "unused.weight"),
        (network_checks.check_grad_cam_at_its_stage, "returns no feature maps"),
        (
            network_checks.check_grad_cam_maps_are_large_enough,
            r"fc has maps of ; \['c1'\] has 4x4 or more",
        ),
    ],
)
def test_a_check_finds_what_it_is_for(spoiled, check, message):
    with pytest.raises((AssertionError, RuntimeError), match=message):
        check(spoiled)


def test_a_stage_of_few_places_is_refused_where_another_has_more():
    entry = registry.models().entry("vgg11_cifar")
    late = dataclasses.replace(entry, spec=dataclasses.replace(entry.spec, cam_stage="conv5"))
    with pytest.raises(AssertionError, match=r"conv5 has maps of 2x2; \['conv4'\] has 4x4"):
        network_checks.check_grad_cam_maps_are_large_enough(Case(late))
    network_checks.check_grad_cam_maps_are_large_enough(Case(entry))
    few = dataclasses.replace(entry.spec, stages=("pool4", "conv5"), cam_stage="conv5")
    network_checks.check_grad_cam_maps_are_large_enough(Case(dataclasses.replace(entry, spec=few)))


def test_a_family_without_a_measured_recipe_is_found(monkeypatch):
    entry = registry.models().entry("lenet5")
    alone = dataclasses.replace(entry, spec=dataclasses.replace(entry.spec, family="alone"))
    with pytest.raises(AssertionError, match="no recipe for any network of the family alone"):
        spec_checks.check_a_recipe_is_measured(Case(alone))
    spec_checks.check_a_recipe_is_measured(Case(entry))
    few = [
        (name, dataclasses.replace(e, spec=dataclasses.replace(e.spec, claim={})))
        for name, e in registry.recipes()
    ]
    monkeypatch.setattr(registry, "recipes", lambda: few)
    with pytest.raises(AssertionError, match="no claim of three seeds or more in lenet5-digits"):
        spec_checks.check_a_recipe_is_measured(Case(entry))


def test_an_expected_failure_that_passes_has_failed(monkeypatch):
    entry = registry.models().entry("lenet5")
    excuses = {"check_parameters_are_as_claimed": "none"}
    spec = dataclasses.replace(entry.spec, expected_failures=excuses)
    odd = dataclasses.replace(entry, spec=spec)
    monkeypatch.setattr("cnn_core.testing.kit._offers_of", lambda *_: [Case(odd)])
    results = {result.check: result for result in run_checks("any")}
    found = results["check_parameters_are_as_claimed"]
    assert found.outcome == "failed"
    assert "was expected to fail: none" in found.reason


def test_a_distribution_without_models_is_refused():
    with pytest.raises(UsageError, match="'cnn-viz' offers no model"):
        cases_of("cnn-viz")
    nothing = "'cnn-none' offers no model, dataset, view, command, weights or observer"
    with pytest.raises(UsageError, match=nothing):
        list(run_checks("cnn-none"))


# Sound and, where BAD is set, spoiled: a dataset, views, commands, and an observer of training.
OFFERS = """
from cnn_core import CommandSpec, DatasetSpec, ViewSpec, hookimpl

BAD = False

@hookimpl
def cnnzoo_datasets():
    facts = dict(summary="s", classes=("a", "b"), image=(1, 8, 8), splits={"train": 6, "test": 4},
        mean=(), std=(), licence="MIT", citation="c", homepage="", embedded=True)
    return [DatasetSpec(name=name, target=f"parts:{name}", **facts) for name in ("drawn", "away")]

@hookimpl
def cnnzoo_views():
    return [ViewSpec(name=name, render=f"parts:{name}", summary="s", needs=("run", "model"))
            for name in ("steady", "moody")]

@hookimpl
def cnnzoo_commands():
    return [CommandSpec(name="greet", target="parts:greet", summary="s")]

@hookimpl
def cnnzoo_step_end(run, epoch, step, loss):
    if BAD:
        import parts
        parts.seen[9]

@hookimpl
def cnnzoo_fit_start(run, model, recipe):
    import parts
    parts.seen.append(model)
"""
PARTS = """
import os
import click
import torch
from matplotlib.figure import Figure
from cnn_core.data import Dataset, Split
from cnn_core.errors import DatasetMissingError

BAD = False

def drawn(spec, root, download):
    salt = os.getpid() if BAD else 0
    make = lambda n, seed: Split(
        torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8,
                      generator=torch.Generator().manual_seed(seed + salt)),
        torch.arange(n) % 2)
    return Dataset(spec, {"train": make(5 if BAD else 6, 1), "test": make(4, 2)})

def away(spec, root, download):
    raise DatasetMissingError("no files of 'away' here", "--data-dir DIR")

def steady(run, model):
    figure = Figure()
    figure.suptitle(str(torch.rand(1)) if BAD else run.recipe.model)
    return figure

def moody(run, model):
    if BAD:
        model.train()
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    return Figure()

@click.command("greet")
def greet():
    HELP
    click.echo("hello")
"""


PINNED = ("cnn-core~=0.1",)


def offers(site, bad):
    site.add(
        OFFERS.replace("BAD = False", f"BAD = {bad}"),
        distribution="cnn-many",
        name="many",
        requires=PINNED,
    )
    help_text = "pass" if bad else "'Say hello.'"
    parts = PARTS.replace("BAD = False", f"BAD = {bad}").replace("HELP", help_text)
    (site.path / "parts.py").write_text("seen = []\n" + parts)


def test_what_is_no_network_is_checked_too(cnnzoo, site):
    offers(site, bad=False)
    done = cnnzoo("check", "cnn-many", site=site.path, warm=True)
    assert done.code == 0, done.out + done.err
    (row,) = [line for line in done.out.splitlines() if "skipped" in line and "sound" in line]
    assert "away" in row
    assert done.out.endswith(
        "12 of 14 checks of 1 command, 2 datasets, 1 observer, 1 plugin, 2 views passed\n"
    )


def test_what_does_not_hold_of_it_is_said(cnnzoo, site):
    offers(site, bad=True)
    done = cnnzoo("check", "cnn-many", "--json", site=site.path, warm=True)
    assert done.code == 6
    found = {
        (row["name"], row["check"]): row["reason"]
        for row in json.loads(done.out)["checks"]
        if row["outcome"] == "failed"
    }
    expected = {
        ("drawn", "check_dataset_is_sound"): "split 'train': 5 samples, expected 6",
        ("drawn", "check_new_process_reads_the_same_samples"): "reads other samples",
        ("steady", "check_view_draws_the_same_figure_twice"): "differs from the first",
        ("steady", "check_view_changes_nothing"): "changes the random state",
        ("moody", "check_view_changes_nothing"): "changes weights, modes",
        ("greet", "check_command_has_help"): "has no help text",
        ("many", "check_training_is_the_same_without_observer"): "plugin 'many'",
        ("many", "check_plugin_has_no_fault"): "hook cnnzoo_step_end, disabled",
    }
    assert set(found) == set(expected)
    for key, words in expected.items():
        assert words in found[key], found[key]


@pytest.mark.parametrize(
    ("more", "target", "reason"),
    [
        (
            "@hookimpl\ndef cnnzoo_views(): raise ValueError('no views')",
            None,
            "hook cnnzoo_views: ValueError: no views",
        ),
        ("raise ImportError('libfoo')", None, "is broken: import: ImportError: libfoo"),
        ("", "cnn_arch_bad_plugin:cnnzoo_models", "is broken: import: ModuleNotFoundError"),
    ],
)
def test_a_fault_of_the_plugin_itself_has_failed(cnnzoo, site, good_source, more, target, reason):
    offer = good_source.replace("return [model()]", "return []")
    site.add(offer + more, requires=PINNED, target=target)
    done = cnnzoo("check", "cnn-arch-bad", "--json", site=site.path, warm=True)
    assert done.code == 6, done.err
    (found,) = [row for row in json.loads(done.out)["checks"] if row["outcome"] == "failed"]
    assert (found["kind"], found["name"]) == ("plugin", "bad")
    assert reason in found["reason"]
    blocked = cnnzoo("--no-plugin", "bad", "check", "cnn-arch-bad", site=site.path, warm=True)
    assert blocked.code == 2
    assert "'cnn-arch-bad' is blocked: disabled by" in blocked.err


def test_weights_that_an_observer_changes_are_noticed(cnnzoo, site):
    site.add(
        """
        import torch
        from cnn_core import hookimpl

        kept = []

        @hookimpl
        def cnnzoo_fit_start(run, model, recipe):
            kept.append(model)

        @hookimpl
        def cnnzoo_step_end(run, epoch, step, loss):
            with torch.no_grad():
                next(kept[0].parameters()).mul_(1.001)
        """,
        distribution="cnn-meddler",
        name="meddler",
        requires=PINNED,
    )
    done = cnnzoo("check", "cnn-meddler", site=site.path, warm=True)
    assert done.code == 6
    assert "the weights differ from those of a run without it" in " ".join(done.out.split())


def test_the_command_prints_what_does_not_hold(cnnzoo, site, good_source):
    done = cnnzoo("check", "cnn-arch-lenet", "--json")
    assert done.code == 0, done.out
    site.add(good_source, distribution="cnn-arch-bad")
    (site.path / "tiny_net.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes=10, in_channels=1):\n"
        "    net = nn.Sequential()\n"
        "    net.add_module('flat', nn.Flatten())\n"
        "    net.add_module('head', nn.Linear(64 * in_channels, num_classes))\n"
        "    return net\n"
    )
    done = cnnzoo("check", "cnn-arch-bad", site=site.path, warm=True)
    assert done.code == 6
    assert "check_docstring_cites_the_paper" in done.out
    assert "cnn-arch-bad: " in done.err
