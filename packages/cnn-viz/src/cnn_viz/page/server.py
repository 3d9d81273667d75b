"""`cnnzoo explore`: a page on this machine, with maps of the images that are dropped on it.

Only 127.0.0.1 is listened to. A request has to name it as its host, so that no other name that
leads here is served, and to come from the page itself; nothing allows another origin anything.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cnn_core import registry
from cnn_core.data.images import read_image
from cnn_core.errors import UsageError, ZooError
from cnn_core.text import printable
from cnn_core.training.prediction import task_of
from cnn_viz import style
from cnn_viz.attribution.cam import cams
from cnn_viz.drawing.image_grid import as_image, as_rgb
from cnn_viz.drawing.render import encode_figure
from cnn_viz.network.convolution import MapPosition, convolution_step, first_feature_maps
from cnn_viz.network.graph import strides
from cnn_viz.page.explorer import cam_stages
from cnn_viz.page.report import load_template, read_script, script_hash, write_report
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.views.arithmetic import drawn
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.gradcam import overlay

__all__ = ["LARGEST", "application"]

LARGEST = 20_000_000  # bytes of an image
NAMED = 5  # classes that are said
MAPS = 16  # of the first convolution, to be clicked
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; "
    "script-src '{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Answer = Callable[[Request], Awaitable[Response]]


def application(view_inputs: ViewInputs, port: int) -> Starlette:
    """Return what answers for a run, to requests whose host is 127.0.0.1 or localhost at a port.

    Raises:
        UsageError: the run does not classify.
    """
    weights, run = view_inputs.weights, view_inputs.run
    if (task := task_of(weights)) != "classification":
        raise UsageError(f"{run.path}: '{weights.model}' does {task}", "cnnzoo predict, or report")
    desk = _Desk(view_inputs)
    own = (f"127.0.0.1:{port}", f"localhost:{port}")
    routes = [
        Route("/", _guarded(desk.home, own)),
        Route("/report", _guarded(desk.report, own)),
        Route("/explain", _guarded(desk.explain, own), methods=["POST"]),
        Route("/maps", _guarded(desk.maps, own), methods=["POST"]),
        Route("/number", _guarded(desk.number, own), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refused})


class _Desk:
    """Where a run's questions are answered, one after the other."""

    def __init__(self, view_inputs: ViewInputs) -> None:
        weights = view_inputs.weights
        height, width = weights.preprocessing.target
        blank = torch.zeros(1, weights.in_channels, height, width, device=view_inputs.device)
        self.view_inputs, self.weights = view_inputs, weights
        self.stages = cam_stages(view_inputs.model, registry.get_spec(weights.model), blank)
        self.strides = strides(weights)
        self.busy = Lock()

    async def home(self, request: Request) -> Response:
        """Return the page."""
        script, run = read_script("live.js"), self.view_inputs.run
        page = load_template("live.html").render(
            run=run.path.absolute().name,
            model=self.weights.model,
            data=run.recipe.data,
            methods=NAMES,
            stages=self.stages,
            classes=self.weights.classes,
            script=script,
        )
        policy = POLICY.format(script_hash(script))
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def report(self, request: Request) -> Response:
        """Return the run's report, written first where there is none of these weights."""
        found = self.view_inputs
        path, weights = found.run.path / "report.html", found.run.weights
        if not path.is_file() or path.stat().st_mtime < weights.stat().st_mtime:
            now = ViewInputs(found.run, data_dir=found.data_dir, device=str(found.device))
            await run_in_threadpool(self._alone, lambda: write_report(now))
        return FileResponse(path, media_type="text/html")

    async def explain(self, request: Request) -> Response:
        """Say what an image is, and lay a map over it."""
        method, stage = (request.query_params.get(name, "") for name in ("method", "stage"))
        number = request.query_params.get("class", "")
        if method not in NAMES or stage not in self.stages:
            return _error("no such method or stage", 400)
        if number and not (number.isdecimal() and int(number[:6]) < len(self.weights.classes)):
            return _error("no such class", 400)
        explained = [int(number)] if number else None
        return await self._answer(request, lambda x: self._explained(x, method, stage, explained))

    async def maps(self, request: Request) -> Response:
        """Return the first convolution's maps of an image, `MAPS` at most, as images."""
        return await self._answer(request, self._maps)

    async def number(self, request: Request) -> Response:
        """Return the arithmetic of one number of these maps, as a figure."""
        words = [request.query_params.get(name, "") for name in ("channel", "row", "column")]
        if not all(word.isdecimal() and len(word) < 6 for word in words):
            return _error("expected a channel, a row and a column", 400)
        channel, row, column = map(int, words)
        return await self._answer(request, lambda x: self._number(x, (channel, row, column)))

    async def _answer(
        self, request: Request, find: Callable[[torch.Tensor], dict[str, Any]]
    ) -> Response:
        """Decode the image that was sent, as the network sees it, and say what is found in it."""
        if request.headers.get("x-cnnzoo") != "1":  # what a form of another site cannot send
            return _error("expected a request of the page", 403)
        content, weights = await _received(request), self.weights

        def found() -> dict[str, Any]:
            picture = _decoded(content, weights.in_channels)
            return find(weights.preprocessing(picture[None].to(self.view_inputs.device)))

        try:
            return JSONResponse(await run_in_threadpool(self._alone, found))
        except ZooError as error:
            return _error(error.message, 400)

    def _maps(self, inputs: torch.Tensor) -> dict[str, Any]:
        layer, maps = first_feature_maps(self.view_inputs.model, inputs)
        limit = float(maps.abs().max()) or 1.0
        colours = colormaps[style.DIVERGING](np.asarray(maps[:MAPS].cpu()) / limit / 2 + 0.5)
        pictures = [_png(picture[..., :3]) for picture in colours]
        return {"layer": layer, "size": list(maps.shape[1:]), "maps": pictures, "limit": limit}

    def _number(self, inputs: torch.Tensor, place: MapPosition) -> dict[str, Any]:
        step = convolution_step(self.view_inputs.model, inputs, place)
        what = f"Map {place[0]} of {step.layer}, at its row {place[1]} and column {place[2]}."
        picture = as_image(self.weights.preprocessing.denormalise(inputs)[0])
        with style.applied():
            figure = drawn(step, picture, f"One number of {step.layer}", what)
            content = encode_figure(figure, "png", dpi=110)
        return {"value": step.output, "figure": base64.b64encode(content).decode()}

    def _explained(
        self, inputs: torch.Tensor, method: str, stage: str, explained: list[int] | None
    ) -> dict[str, Any]:
        weights, classes = self.weights, self.weights.classes
        cam = cams(self.view_inputs.model, inputs, [stage], explained, method)[stage]
        heat = cam.heat(stride=self.strides.get(stage, 0))[0]
        plain = as_rgb(weights.preprocessing.denormalise(inputs)[0])
        best = cam.logits.softmax(1)[0].topk(min(NAMED, len(classes)))
        names = [printable(classes[k]) for k in best.indices.tolist()]
        return {
            "classes": list(zip(names, best.values.tolist(), strict=True)),
            "explained": printable(classes[int(cam.classes[0])]),
            "empty": bool(cam.empty[0]),
            "picture": _png(plain),
            "overlay": _png(overlay(plain, heat.cpu().numpy())),
        }

    def _alone(self, call: Callable[[], Any]) -> Any:
        with self.busy:
            return call()


def _guarded(answer: Answer, own: Collection[str]) -> Answer:
    """Answer only who names this machine, and comes from nowhere else."""

    async def checked(request: Request) -> Response:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if host not in own or origin not in (None, f"http://{host}"):
            return _error("this page is for its own machine only", 403)
        response = await answer(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return checked


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.detail, error.status_code)


def _error(words: str, status: int) -> Response:
    return JSONResponse({"error": printable(words)}, status)


async def _received(request: Request) -> bytes:
    """Return the body; one of more than `LARGEST` bytes is not read to its end."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise HTTPException(413, f"an image of more than {LARGEST:,} bytes")
    return bytes(content)


def _decoded(content: bytes, channels: int) -> torch.Tensor:
    """Return an image, uint8, C H W; raises CorruptError if it is none, or not let in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_image(path, channels)
        except ZooError as error:
            error.message = error.message.removeprefix(f"{path}: ")  # of no file of the reader's
            raise


def _png(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
