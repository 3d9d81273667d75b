"""`cnnzoo explore`: its answers for an image, and the requests that it refuses."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from starlette.testclient import TestClient

import cnn_core
from cnn_core import load_dataset
from cnn_core.data.images import read_image
from cnn_core.errors import UsageError
from cnn_core.training import Run, predict
from cnn_viz.page import server as serve
from cnn_viz.results.inputs import ViewInputs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ASKED = {"X-Cnnzoo": "1"}
QUERY = "explain?method=grad-cam&stage=c3&class="


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = load_dataset("digits").split("test").images[0, 0].numpy()
    path = tmp_path_factory.mktemp("digit") / "seven <b>.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def client(run: Run) -> TestClient:
    application = serve.application(ViewInputs(run, device="cpu"), 8765)
    return TestClient(application, base_url="http://127.0.0.1:8765")


def test_the_page_has_a_strict_policy(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "script-src 'sha256-" in policy
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "c3" in answer.text


def test_an_image_is_explained_as_predict_says(client, run, digit):
    answer = client.post(f"/{QUERY}", content=digit.read_bytes(), headers=ASKED)
    assert answer.status_code == 200
    found = answer.json()
    (expected,) = predict(run.path, [digit], top_k=5, device="cpu")
    assert [name for name, _ in found["classes"]] == list(expected.classes)
    assert [p for _, p in found["classes"]] == pytest.approx(expected.probabilities, abs=1e-6)
    assert found["explained"] == expected.classes[0]
    sizes = {
        Image.open(io.BytesIO(base64.b64decode(found[name]))).size for name in ("image", "overlay")
    }
    assert sizes == {(32, 32)}
    other = client.post(f"/{QUERY}3", content=digit.read_bytes(), headers=ASKED).json()
    assert other["explained"] == "3"
    assert other["overlay"] != found["overlay"] or found["explained"] == "3"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({**ASKED, "Host": "example.org:8765"}, 403),
        ({**ASKED, "Host": "127.0.0.1:1"}, 403),
        ({**ASKED, "Host": "[::1]:8765"}, 403),
        ({**ASKED, "Origin": "http://example.org"}, 403),
        ({**ASKED, "Origin": "null"}, 403),
        ({}, 403),
        ({**ASKED, "Origin": "http://127.0.0.1:8765"}, 200),
    ],
)
def test_only_the_page_itself_is_answered(client, digit, headers, code):
    answer = client.post(f"/{QUERY}", content=digit.read_bytes(), headers=headers)
    assert answer.status_code == code
    if "Host" in headers:
        assert client.get("/", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("query", "content", "code", "said"),
    [
        (QUERY, b"not an image", 400, "image"),
        (QUERY, b"", 400, "image"),
        (QUERY, b"\x89PNG\r\n\x1a\n" + b"x" * 100, 400, "image"),
        (QUERY.replace("grad-cam", "score-cam"), b"", 400, "no such method"),
        (QUERY.replace("c3", "../c3"), b"", 400, "no such method or stage"),
        (f"{QUERY}10", b"", 400, "no such class"),
        (f"{QUERY}{'0' * 5000}", b"", 400, "no such class"),
        (f"{QUERY}-1", b"", 400, "no such class"),
        (f"{QUERY}{'9' * 400}", b"", 400, "no such class"),
        (QUERY, b"x" * (serve.MAX_BYTES + 1), 413, "more than 20,000,000 bytes"),
    ],
)
def test_invalid_images_and_queries_are_refused_with_a_message(client, query, content, code, said):
    answer = client.post(f"/{query}", content=content, headers=ASKED)
    assert answer.status_code == code
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert tempfile.gettempdir() not in answer.text


def test_a_number_of_a_map_is_explained(client, run, digit):
    answer = client.post("/maps", content=digit.read_bytes(), headers=ASKED)
    found = answer.json()
    assert (found["layer"], found["size"], len(found["maps"])) == ("c1", [28, 28], 6)
    view_inputs = ViewInputs(run, device="cpu")
    image = view_inputs.weights.preprocessing(read_image(digit, 1)[None])
    with torch.no_grad():
        maps = torch.nn.functional.conv2d(
            image, view_inputs.model.c1.weight, view_inputs.model.c1.bias
        )
    for channel, row, column in ((0, 0, 0), (5, 27, 3), (2, 14, 27)):
        place = f"channel={channel}&row={row}&column={column}"
        answer = client.post(f"/number?{place}", content=digit.read_bytes(), headers=ASKED)
        assert answer.json()["value"] == pytest.approx(
            float(maps[0, channel, row, column]), abs=1e-5
        )
        assert base64.b64decode(answer.json()["figure"]).startswith(b"\x89PNG")
    for place in (
        "channel=6&row=0&column=0",
        "channel=0&row=28&column=0",
        "channel=-1&row=0&column=0",
    ):
        answer = client.post(f"/number?{place}", content=digit.read_bytes(), headers=ASKED)
        assert answer.status_code == 400
    assert client.post("/maps", content=digit.read_bytes()).status_code == 403


def test_a_report_of_other_weights_is_written_again(client, run, monkeypatch):
    written = []

    def write(view_inputs: ViewInputs) -> None:
        written.append(view_inputs)
        (run.path / "report.html").write_text("new", "utf-8")

    monkeypatch.setattr(serve, "write_report", write)
    (run.path / "report.html").write_text("old", "utf-8")
    assert client.get("/report").text == "old"
    os.utime(run.weights, (then := time.time() + 60, then))
    assert client.get("/report").text == "new"
    assert "weights" not in vars(written[0])  # to be read again
    (run.path / "report.html").unlink()
    os.utime(run.weights)
    assert [client.get("/report").text for _ in range(2)] == ["new", "new"]
    assert len(written) == 2


def test_other_ways_in_are_closed(client):
    assert client.get(f"/{QUERY}").status_code == 405
    assert client.get("/weights.safetensors").status_code == 404
    assert client.get("/../run/recipe.toml").status_code == 404


def test_a_run_that_segments_is_refused(tmp_path):
    options = {"epochs": 1, "image_size": 16, "options": {"width": 2, "depth": 1}}
    run = cnn_core.train(
        "unet_same", "digit_scenes", out=tmp_path / "run", progress=False, device="cpu", **options
    )
    with pytest.raises(UsageError, match="does segmentation"):
        serve.application(ViewInputs(run, device="cpu"), 1)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_images_that_are_chosen_in_a_browser_are_explained(run, digit, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    command = [sys.executable, "-m", "cnn_core", "explore", str(run.path), "--port", "0"]
    served = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        address = served.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--headless", "--no-sandbox"]
            )
            page: Any = browser.new_page()
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address)
            page.set_input_files("[type=file]", [digit, broken])
            page.wait_for_selector("#results figure:nth-child(2)")
            words = page.locator("#results figcaption").all_text_contents()
            assert words[0].startswith("seven <b>.png: ")
            assert "%" in words[0]
            assert words[1].startswith("broken.png: ")
            assert page.locator("#results .heat").count() == 1
            first = page.locator("#results .heat").get_attribute("src")
            page.select_option("[name=method]", "eigen-cam")
            page.wait_for_function(
                "old => { const heat = document.querySelector('#results .heat');"
                " return heat && heat.src !== old; }",
                arg=first,
            )
            page.fill("[name=opacity]", "30")
            shown = "getComputedStyle(document.querySelector('#results .heat')).opacity"
            assert np.isclose(float(page.evaluate(shown)), 0.3)
            page.locator("#grid img").nth(2).click(position={"x": 20, "y": 30})
            page.wait_for_selector("#number img")
            assert page.get_attribute("#number img", "alt").startswith("map 2, row ")
            assert complaints == []
            browser.close()
    finally:
        served.send_signal(signal.SIGINT)
        served.communicate(timeout=20)
    assert served.returncode in (0, -signal.SIGINT, 130)
