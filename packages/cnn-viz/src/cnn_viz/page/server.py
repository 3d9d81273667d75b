"""`cnnzoo explore`: a local page that shows maps of the images dropped on it.

The server binds to 127.0.0.1 only. A request must also name this host, which defeats DNS
rebinding, and come from the page itself, which defeats cross-site requests: otherwise any web page
open in the same browser could use the server. No other origin is allowed by CORS headers.
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
from cnn_viz.views.arithmetic import draw_step
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.gradcam import overlay

__all__ = ["MAX_BYTES", "application"]

MAX_BYTES = 20_000_000  # of an uploaded image
TOP_CLASSES = 5  # classes reported for an image
MAX_MAPS = 16  # of the first convolution, at most
# Besides the hash of our script: images as data, inline styles, and requests to this server.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; "
    "script-src '{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Handler = Callable[[Request], Awaitable[Response]]


def application(view_inputs: ViewInputs, port: int) -> Starlette:
    """Return the application for a run; it serves 127.0.0.1 and localhost at this port only.

    Raises:
        UsageError: the run is not a classifier.
    """
    weights, run = view_inputs.weights, view_inputs.run
    if (task := task_of(weights)) != "classification":
        raise UsageError(f"{run.path}: '{weights.model}' does {task}", "cnnzoo predict, or report")
    handlers = _Handlers(view_inputs)
    hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
    routes = [
        Route("/", _same_origin_only(handlers.home, hosts)),
        Route("/report", _same_origin_only(handlers.report, hosts)),
        Route("/explain", _same_origin_only(handlers.explain, hosts), methods=["POST"]),
        Route("/maps", _same_origin_only(handlers.maps, hosts), methods=["POST"]),
        Route("/number", _same_origin_only(handlers.number, hosts), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


class _Handlers:
    """The request handlers of one run.

    They use the network one at a time: hooks of two requests on one network would mix.
    """

    def __init__(self, view_inputs: ViewInputs) -> None:
        weights = view_inputs.weights
        height, width = weights.preprocessing.resize_to
        blank = torch.zeros(1, weights.in_channels, height, width, device=view_inputs.device)
        self.view_inputs, self.weights = view_inputs, weights
        self.stages = cam_stages(view_inputs.model, registry.get_spec(weights.model), blank)
        self.strides = strides(weights)
        self.busy = Lock()

    async def home(self, request: Request) -> Response:
        """Serve the page, whose policy allows only our own script, by its hash."""
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
        """Serve the run's report; write it first if it is missing or older than the weights."""
        inputs = self.view_inputs
        path, weights = inputs.run.path / "report.html", inputs.run.weights
        if not path.is_file() or path.stat().st_mtime < weights.stat().st_mtime:
            # A fresh one: the old one has cached the network with the old weights.
            now = ViewInputs(inputs.run, data_dir=inputs.data_dir, device=str(inputs.device))
            await run_in_threadpool(self._serialised, lambda: write_report(now))
        return FileResponse(path, media_type="text/html")

    async def explain(self, request: Request) -> Response:
        """Classify an image and return it with a map laid over it."""
        method, stage = (request.query_params.get(name, "") for name in ("method", "stage"))
        number = request.query_params.get("class", "")
        if method not in NAMES or stage not in self.stages:
            return _error("no such method or stage", 400)
        # Bounded before int(), which is slow for thousands of digits.
        if number and not (number.isdecimal() and int(number[:6]) < len(self.weights.classes)):
            return _error("no such class", 400)
        explained = [int(number)] if number else None
        return await self._respond(request, lambda x: self._explained(x, method, stage, explained))

    async def maps(self, request: Request) -> Response:
        """Return up to `MAX_MAPS` of the first convolution's maps for an image, as PNGs."""
        return await self._respond(request, self._maps)

    async def number(self, request: Request) -> Response:
        """Return a figure of how one value of these maps is computed."""
        values = [request.query_params.get(name, "") for name in ("channel", "row", "column")]
        if not all(value.isdecimal() and len(value) < 6 for value in values):
            return _error("expected a channel, a row and a column", 400)
        channel, row, column = map(int, values)
        return await self._respond(request, lambda x: self._number(x, (channel, row, column)))

    async def _respond(
        self, request: Request, explain: Callable[[torch.Tensor], dict[str, Any]]
    ) -> Response:
        """Decode and preprocess the image that was sent, and return the result of `explain`."""
        if request.headers.get("x-cnnzoo") != "1":  # a form on another site cannot set headers
            return _error("expected a request from the page", 403)
        content, weights = await _received(request), self.weights

        def compute() -> dict[str, Any]:
            image = _decoded(content, weights.in_channels)
            return explain(weights.preprocessing(image[None].to(self.view_inputs.device)))

        try:
            return JSONResponse(await run_in_threadpool(self._serialised, compute))
        except ZooError as error:
            return _error(error.message, 400)

    def _maps(self, inputs: torch.Tensor) -> dict[str, Any]:
        layer, maps = first_feature_maps(self.view_inputs.model, inputs)
        limit = float(maps.abs().max()) or 1.0
        colours = colormaps[style.DIVERGING](np.asarray(maps[:MAX_MAPS].cpu()) / limit / 2 + 0.5)
        images = [_png(colours_of_map[..., :3]) for colours_of_map in colours]
        return {"layer": layer, "size": list(maps.shape[1:]), "maps": images, "limit": limit}

    def _number(self, inputs: torch.Tensor, place: MapPosition) -> dict[str, Any]:
        step = convolution_step(self.view_inputs.model, inputs, place)
        caption = f"Map {place[0]} of {step.layer}, row {place[1]}, column {place[2]}."
        image = as_image(self.weights.preprocessing.denormalise(inputs)[0])
        with style.applied():
            figure = draw_step(step, image, f"One value of {step.layer}", caption)
            content = encode_figure(figure, "png", dpi=110)
        return {"value": step.output, "figure": base64.b64encode(content).decode()}

    def _explained(
        self, inputs: torch.Tensor, method: str, stage: str, explained: list[int] | None
    ) -> dict[str, Any]:
        weights, classes = self.weights, self.weights.classes
        cam = cams(self.view_inputs.model, inputs, [stage], explained, method)[stage]
        heat = cam.heat(stride=self.strides.get(stage, 0))[0]
        rgb = as_rgb(weights.preprocessing.denormalise(inputs)[0])
        best = cam.logits.softmax(1)[0].topk(min(TOP_CLASSES, len(classes)))
        names = [printable(classes[k]) for k in best.indices.tolist()]
        return {
            "classes": list(zip(names, best.values.tolist(), strict=True)),
            "explained": printable(classes[int(cam.classes[0])]),
            "empty": bool(cam.empty[0]),
            "image": _png(rgb),
            "overlay": _png(overlay(rgb, heat.cpu().numpy())),
        }

    def _serialised(self, call: Callable[[], Any]) -> Any:
        with self.busy:
            return call()


def _same_origin_only(answer: Handler, hosts: Collection[str]) -> Handler:
    """Refuse requests that name another host or come from another origin."""

    async def checked(request: Request) -> Response:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if host not in hosts or origin not in (None, f"http://{host}"):
            return _error("this page serves its own machine only", 403)
        response = await answer(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        # Answers depend on the weights, which may have been replaced.
        response.headers["Cache-Control"] = "no-store"
        return response

    return checked


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.detail, error.status_code)


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": printable(message)}, status)


async def _received(request: Request) -> bytes:
    """Return the body; stop reading after `MAX_BYTES`."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"the image has more than {MAX_BYTES:,} bytes")
    return bytes(content)


def _decoded(content: bytes, channels: int) -> torch.Tensor:
    """Return an image, uint8 C H W; raise CorruptError if it is damaged or unsupported."""
    with tempfile.TemporaryDirectory() as folder:
        # A file, because read_image checks formats and sizes of files before decoding them.
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_image(path, channels)
        except ZooError as error:
            # The temporary path means nothing to the user.
            error.message = error.message.removeprefix(f"{path}: ")
            raise


def _png(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
