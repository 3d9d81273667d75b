"""The command as people and scripts meet it: output, errors, exit codes, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_core.builtin import plugin as builtin

COMMAND = [sys.executable, "-m", "cnn_core"]
READ = {
    "list-models": "models",
    "list-datasets": "datasets",
    "list-recipes": "recipes",
    "list-keys": "keys",
    "list-views": "views",
    "plugins": "plugins",
}


@pytest.fixture(scope="module")
def run(digits_run):
    return digits_run


@pytest.mark.parametrize("command", [*READ, "show lenet5"])
def test_json_is_one_object_with_a_schema(cnnzoo, command):
    done = cnnzoo(*command.split(), "--json")
    assert (done.code, done.err) == (0, "")
    content = json.loads(done.out)
    noun = READ.get(command, "model")
    assert set(content) == {"schema", noun}
    assert content["schema"] == 1
    assert content[noun]


@pytest.mark.parametrize("command", ["", *builtin.COMMANDS])
def test_every_help_has_an_example(cnnzoo, command):
    done = cnnzoo(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert re.search(rf"Examples?:\n +cnnzoo {command}|CNNZOO_PLUGINS", done.out)


def test_show_prints_the_papers_table(cnnzoo):
    done = cnnzoo("show", "lenet5")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert ["c3", "16x10x10", "1,516", "240,000", "151,600", "14", "px"] in rows
    assert ["total", "60,000", "415,680", "340,908"] in rows


def test_a_pattern_picks_models(cnnzoo):
    assert cnnzoo("list-models", "*modern").out.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list-models", "lenet6*"), "unknown model 'lenet6*', did you mean 'lenet5'"),
        (("list-models", "lenet*", "--task", "segmentation"), "segmentation matches 'lenet*'"),
        (("list-datasets", "digitz", "--json"), "unknown dataset 'digitz', did you mean 'digits'"),
        (("list-recipes", "foo*"), "unknown recipe 'foo*'\nsee: cnnzoo list-recipes"),
        (("list-keys", "clipnorm"), "unknown recipe key 'clipnorm', did you mean 'clip_norm'"),
        (("list-views", "gradcm"), "unknown view 'gradcm', did you mean 'gradcam'"),
        (("list-weights", "foo*"), "unknown weights 'foo*'\nsee: cnnzoo list-weights"),
    ],
)
def test_a_pattern_without_a_match_is_an_error(in_process, arguments, message):
    code, out, err = in_process(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("show-data", "DATA"),
        ("verify-data", "DATA"),
        ("train", "lenet5", "--data", "DATA"),
        ("lr-find", "lenet5", "--data", "DATA"),
        ("evaluate", "RUN", "--data", "DATA"),
        ("features", "RUN", "DATA", "--out", "f.npz"),
        ("viz", "gradcam", "RUN", "--data", "DATA"),
    ],
)
def test_a_path_that_does_not_exist_has_one_exit_code(
    in_process, digits_run, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    places = {"DATA": "imagefolder:gone", "RUN": digits_run.path}
    code, out, err = in_process(*(places.get(word, word) for word in arguments))
    assert (code, out) == (2, "")
    assert "gone: no such folder" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("show lenet", 2, "unknown model 'lenet', did you mean 'lenet5'"),
        ("train lenet5 --data digit", 2, "unknown dataset 'digit', did you mean 'digits'"),
        ("train lenet5", 2, "no data is given"),
        ("train", 2, "no model is given"),
        ("trian", 2, "unknown command 'trian', did you mean 'train'"),
        ("train lenet5 --data digits --set lrr=1", 2, "'lrr', did you mean 'lr'"),
        ("train lenet5 --data digits --set lr", 2, "'lr': expected key=value"),
        ("train lenet5 --data digits --precision bf61", 2, "did you mean 'bf16'"),
        ("train lenet5 --data digits --epochs x", 2, "'x' is not a valid integer"),
        ("train lenet5 --data digits --top-k 11", 2, "topk = 11, but there are 10 classes"),
        ("train lenet5 --data digits --device tpu9", 2, "device 'tpu9'"),
        ("train lenet5 --data digits --set image_size=16", 2, "needs at least 32"),
        ("train lenet5 --data digits --set options.width=2", 2, "takes no option 'width'"),
        ("train lenet5 --data digits --recipe lenet5-digit", 2, "did you mean 'lenet5-digits'"),
        ("train lenet5 --data mnist --data-dir nowhere", 1, "no train-images-idx3-ubyte"),
        ("train --resume nowhere", 2, "nowhere: no such run directory"),
        ("train --resume . --lr 3", 2, "--resume cannot be combined with"),
        ("evaluate .", 2, "not a run: recipe.toml is missing"),
        ("predict . a.png", 2, "not a run: recipe.toml is missing"),
        ("list-models --tsk x", 2, "Did you mean '--task'"),
        ("--no-such list-models", 2, "No such option"),
    ],
)
def test_misuse_is_one_to_three_lines_and_the_right_code(
    cnnzoo, tmp_path, arguments, code, message
):
    done = cnnzoo(*arguments.split(), cwd=tmp_path)
    assert done.code == code, done.err
    assert message in done.err
    assert 1 <= done.err.count("\n") <= 3
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_not_written_into(cnnzoo, tmp_path):
    (tmp_path / "mine").write_text("")
    done = cnnzoo("train", "lenet5", "--data", "digits", "--out", tmp_path)
    assert done.code == 2
    assert "is not empty" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_training_prints_the_run_on_stdout_and_a_line_per_epoch_on_stderr(cnnzoo, tmp_path):
    out = tmp_path / "run"
    done = cnnzoo(
        "train", "lenet5_modern", "--data", "digits", "--out", out, "--epochs", 2, "--top-k", 3
    )
    assert done.code == 0
    assert done.out == f"{out}\n"
    lines = done.err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert "top3" in lines[-1]
    assert "\x1b" not in done.err
    assert cnnzoo("train", "--resume", out).out == f"{out}\n"


def test_evaluate_agrees_with_training(cnnzoo, run):
    done = cnnzoo("evaluate", run.path, "--json")
    assert done.code == 0
    assert json.loads(done.out)["metrics"] == run.test_metrics()
    assert "val/" not in cnnzoo("evaluate", run.path).out
    assert "did you mean 'train'" in cnnzoo("evaluate", run.path, "--split", "trian").err


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    from cnn_core import load_dataset

    test = load_dataset("digits").split("test")
    for number in range(3):
        array = test.images[number, 0].numpy()
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    Image.fromarray(test.images[3, 0].numpy()).convert("RGB").save(tmp_path / "3.jpg", quality=95)
    return tmp_path, test


def test_predict_names_the_classes_of_pictures(cnnzoo, run, pictures):
    from cnn_core.training import predictions

    folder, _ = pictures
    names = [f"{number}.png" for number in range(3)] + ["3.jpg"]
    done = cnnzoo("predict", run.path, *names, "--top-k", 2, "--json", cwd=folder)
    assert done.code == 0, done.err
    found = json.loads(done.out)["predictions"]
    whole = predictions(run)
    for number, prediction in enumerate(found):
        assert prediction["path"] == names[number]
        assert prediction["classes"][0] == str(whole.predicted[number].item())
        assert prediction["probabilities"][0] >= prediction["probabilities"][1]
        if number < 3:
            expected = whole.probabilities[number].max().item()
            assert prediction["probabilities"][0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_not_a_picture_is_refused_by_name(cnnzoo, run, tmp_path, content):
    (tmp_path / "odd.png").write_bytes(content)
    done = cnnzoo("predict", run.path, tmp_path / "odd.png")
    assert done.code == 3
    assert "odd.png: " in done.err
    assert "not a readable image" in done.err or "an empty file, not an image" in done.err
    assert "no such image file" in cnnzoo("predict", run.path, tmp_path / "none.png").err


def test_truncated_data_is_named_with_its_file(cnnzoo, tmp_path):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0" * 11)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(b"")
    done = cnnzoo("train", "lenet5", "--data", "mnist", "--data-dir", tmp_path, cwd=tmp_path)
    assert done.code == 3
    assert "train-images-idx3-ubyte: at byte 4" in done.err
    assert done.err.count("\n") <= 3
    assert not (tmp_path / "runs").exists()


def test_a_traceback_is_shown_only_when_asked_for(cnnzoo, tmp_path):
    (tmp_path / "odd.toml").write_text("[")
    arguments = ("train", "--recipe", "odd.toml")
    assert "Traceback" not in cnnzoo(*arguments, cwd=tmp_path).err
    assert "Traceback" in cnnzoo("--traceback", *arguments, cwd=tmp_path).err


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    child = subprocess.Popen(
        [*COMMAND, "list-models", "--json"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, b"")


def started_training(folder, *arguments):
    """Start a long training and wait until its first epoch is done."""
    child = subprocess.Popen(
        [*COMMAND, "train", "lenet5_modern", "--data", "digits", "--epochs", "5000", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while not child.stderr.readline().startswith("epoch 2"):
        assert child.poll() is None
    return child


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_with_its_code_and_a_way_to_go_on(tmp_path, signum, code):
    child = started_training(tmp_path, "--out", "run")
    child.send_signal(signum)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert err.splitlines()[-1] == "resume with: cnnzoo train --resume run"
    assert "Traceback" not in err
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_tables_are_drawn_on_a_terminal_in_colour_unless_told_not_to(on_terminal):
    coloured = on_terminal("plugins")
    plain = on_terminal("plugins", NO_COLOR="1")
    assert "cnn-arch-lenet" in coloured
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", coloured)
    assert not re.search(r"\x1b\[[0-9;]*(3|9)[0-9]m", plain)
    assert "─" in plain


def test_a_listing_fits_the_terminal_and_is_whole_in_a_pipe(cnnzoo, on_terminal):
    lines = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("list-models", COLUMNS="60")).splitlines()
    assert max(map(len, lines)) == 60
    assert all(line.endswith("…") for line in lines if len(line) == 60)
    assert "…" not in cnnzoo("list-models").out
    assert "\x1b" not in on_terminal("list-models", NO_COLOR="1")


def test_training_is_live_on_a_terminal(tmp_path, on_terminal):
    written = on_terminal(
        "train", "lenet5_modern", "--data", "digits", "--epochs", "4", "--out", str(tmp_path / "r")
    )
    for part in ("epoch 2/4", "step ", "loss", "top1", "images/s", "left"):
        assert part in written


def test_without_plugins_the_core_works_and_names_packages_to_install(cnnzoo):
    assert cnnzoo("list-models", CNNZOO_PLUGINS="").code == 0
    assert cnnzoo("list-datasets", CNNZOO_PLUGINS="").out.count("\n") == 17
    done = cnnzoo("list-views", CNNZOO_PLUGINS="")
    assert "pip install cnn-viz" in done.err


def test_complaints_of_click_know_the_command(cnnzoo):
    assert "see: cnnzoo train --help" in cnnzoo("train", "--epochs", "x").err


def test_show_has_the_papers_table_beside_what_the_code_does(cnnzoo):
    done = cnnzoo("show", "resnet50")
    paper, code = done.out.split("In the code")
    assert "In the paper" in paper
    assert re.search(r"conv5_x +7x7 +3x3, 512", paper)
    assert re.search(r"conv5_x +2048x7x7 +14,964,736 +809,238,528", code)
    assert "FLOPs" in json.loads(cnnzoo("show", "resnet50", "--json").out)["model"]["paper_table"]


@pytest.mark.parametrize(
    "arguments",
    [
        "predict {source} new --csv {out}/o.csv",
        "predict {source} new --jsonl {out}/o.jsonl",
        "features {source} new --out {out}/f.npz",
        "cam {source} new --out {out}/cam",
        "export {source} --out {out}/net.pt2",
        "report {source} --out {out}/report",
        "show-data digits --out {out}/digits.png",
        "train lenet5_modern --data digits --epochs 1 --out {out}/run",
    ],
)
def test_output_that_cannot_be_written_is_one_line_before_any_work(
    in_process, tmp_path, monkeypatch, arguments
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    for name in ("new/1.png", "photo.png"):
        Image.new("L", (8, 8)).save(name)
    before = sorted(map(str, tmp_path.rglob("*")))
    words = arguments.format(source="lenet5_modern:digits", out="photo.png").split()
    code, out, err = in_process(*words)
    given = words[-1]
    assert code == 2
    assert out == "" or words[0] == "show-data"  # which prints the dataset first
    assert err.endswith(f"error: {given}: cannot be written: photo.png is not a folder\n")
    assert not {"pass", "drawing", "evaluating", "epoch", "hint"} & set(err.split())
    if Path("/proc/self").is_dir():
        words[-1] = f"/proc/{Path(given).name}"
        code, out, err = in_process(*words)
        assert code == 2
        assert f"error: {words[-1]}: cannot be written: " in err
    assert sorted(map(str, tmp_path.rglob("*"))) == before
