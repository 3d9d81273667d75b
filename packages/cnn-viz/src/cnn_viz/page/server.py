"""`cnnzoo explore`: a local page that explains predictions for images dropped on it.

The server binds to 127.0.0.1 only. It refuses requests with another host in their Host header,
which stops DNS rebinding, and requests from other origins, which stops cross-site requests.
Otherwise any web page open in the same browser could use the server. It sends no CORS headers.
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

from cnn_core.data.images import read_image
from cnn_core.errors import UsageError, ZooError
from cnn_core.text import printable
from cnn_core.training.exported import require_layers
from cnn_core.training.prediction import task_of
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import cams
from cnn_viz.drawing.image_grid import as_image, as_rgb
from cnn_viz.drawing.render import encode_figure
from cnn_viz.network.convolution import MapPosition, convolution_step, first_feature_maps
from cnn_viz.network.graph import strides
from cnn_viz.page.explorer import cam_stages
from cnn_viz.page.origin import origin_of
from cnn_viz.page.report import load_template, read_script, script_hash, write_report
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.views.arithmetic import draw_step
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.gradcam import overlay

__all__ = ["MAX_BYTES", "application"]

MAX_BYTES = 20_000_000  # of an uploaded image
TOP_CLASSES = 5  # reported for an image
MAX_LISTED = 50  # classes; more are chosen by typing, as a list would be too long
MAX_MAPS = 16  # at most this many maps of the first convolution
# Allow data: images, inline styles, requests to this server, and our script by its hash.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; "
    "script-src '{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Handler = Callable[[Request], Awaitable[Response]]


def application(view_inputs: ViewInputs, port: int) -> Starlette:
    """Return the application for a network; it answers only to 127.0.0.1 and localhost at `port`.

    Raises:
        UsageError: the network is not a classifier, or it is an exported file.
    """
    weights = view_inputs.weights
    require_layers(weights)
    if (task := task_of(weights)) != "classification":
        raise UsageError(
            f"{view_inputs.path}: '{weights.model}' does {task}", "cnnzoo predict, or report"
        )
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
    """The request handlers of one network.

    Only one at a time may use the network: the hooks of two requests would interfere.
    """

    def __init__(self, view_inputs: ViewInputs) -> None:
        weights = view_inputs.weights
        height, width = weights.preprocessing.size
        blank = torch.zeros(1, weights.in_channels, height, width, device=view_inputs.device)
        self.view_inputs, self.weights = view_inputs, weights
        self.stages = cam_stages(view_inputs.model, view_inputs.spec, blank)
        self.strides = strides(weights)
        self.origin = origin_of(view_inputs)
        self.lock = Lock()

    async def home(self, request: Request) -> Response:
        """Serve the page, with a policy that allows only our own script."""
        script = read_script("live.js")
        page = load_template("live.html").render(
            name=self.origin["name"],
            model=self.weights.model,
            trained_on=self.origin["trained_on"],
            reported_on=_data_of(self.view_inputs),
            methods=NAMES,
            stages=self.stages,
            classes=self.weights.classes,
            few=len(self.weights.classes) <= MAX_LISTED,
            script=script,
        )
        policy = POLICY.format(script_hash(script))
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def report(self, request: Request) -> Response:
        """Serve the report; write it first if it is missing or older than the weights."""
        inputs, weights = self.view_inputs, self.weights.path
        if not _data_of(inputs):
            return _error("no dataset to report on: cnnzoo explore … --data DATASET", 404)
        path = inputs.output / "report.html"
        assert weights is not None  # they were read from a file
        if not path.is_file() or path.stat().st_mtime < weights.stat().st_mtime:
            # New inputs, because the old ones have cached the network with the old weights.
            fresh_inputs = inputs.fresh()
            await run_in_threadpool(self._run_exclusively, lambda: write_report(fresh_inputs))
        return FileResponse(path, media_type="text/html")

    async def explain(self, request: Request) -> Response:
        """Classify an image; return the image, and an overlay of the image and a map."""
        method, stage = (request.query_params.get(name, "") for name in ("method", "stage"))
        number = request.query_params.get("class", "")
        if method not in NAMES or stage not in self.stages:
            return _error("no such method or stage", 400)
        # Check the length before int(), which raises an error for thousands of digits.
        if number and not (
            len(number) <= 6 and number.isdecimal() and int(number) < len(self.weights.classes)
        ):
            return _error("no such class", 400)
        classes = [int(number)] if number else None
        return await self._respond(
            request, lambda x: self._explain_class(x, method, stage, classes)
        )

    async def maps(self, request: Request) -> Response:
        """Return up to `MAX_MAPS` feature maps of the first convolution for an image, as PNGs."""
        return await self._respond(request, self._maps)

    async def number(self, request: Request) -> Response:
        """Return a figure that shows how one value of these feature maps is computed."""
        values = [request.query_params.get(name, "") for name in ("channel", "row", "column")]
        if not all(value.isdecimal() and len(value) < 6 for value in values):
            return _error("expected a channel, a row and a column", 400)
        channel, row, column = map(int, values)
        return await self._respond(request, lambda x: self._number(x, (channel, row, column)))

    async def _respond(
        self, request: Request, explain: Callable[[torch.Tensor], dict[str, Any]]
    ) -> Response:
        """Decode and preprocess the uploaded image, and return the result of `explain` as JSON."""
        if request.headers.get("x-cnnzoo") != "1":  # a form on another site cannot set headers
            return _error("expected a request from the page itself", 403)
        content, weights = await _read_body(request), self.weights

        def compute() -> dict[str, Any]:
            image = _decode_image(content, weights)
            return explain(weights.preprocessing(image[None].to(self.view_inputs.device)))

        try:
            return JSONResponse(await run_in_threadpool(self._run_exclusively, compute))
        except ZooError as error:
            return _error(error.message, 400)

    def _maps(self, inputs: torch.Tensor) -> dict[str, Any]:
        layer, maps = first_feature_maps(self.view_inputs.model, inputs)
        limit = float(maps.abs().max()) or 1.0
        colours = colormaps[style.DIVERGING](np.asarray(maps[:MAX_MAPS].cpu()) / limit / 2 + 0.5)
        images = [_png(rgba[..., :3]) for rgba in colours]
        return {"layer": layer, "size": list(maps.shape[1:]), "maps": images, "limit": limit}

    def _number(self, inputs: torch.Tensor, position: MapPosition) -> dict[str, Any]:
        step = convolution_step(self.view_inputs.model, inputs, position)
        caption = f"Map {position[0]} of {step.layer}, row {position[1]}, column {position[2]}."
        image = as_image(self.weights.preprocessing.denormalise(inputs)[0])
        with style.applied():
            figure = draw_step(step, image, f"One value of {step.layer}", caption)
            content = encode_figure(figure, "png", dpi=110)
        return {"value": step.output, "figure": base64.b64encode(content).decode()}

    def _explain_class(
        self, inputs: torch.Tensor, method: str, stage: str, explained_classes: list[int] | None
    ) -> dict[str, Any]:
        weights, classes = self.weights, self.weights.classes
        cam = cams(self.view_inputs.model, inputs, [stage], explained_classes, method)[stage]
        heat = cam.heat(stride=self.strides.get(stage, 0))[0]
        rgb = as_rgb(weights.preprocessing.denormalise(inputs)[0])
        top = cam.logits.softmax(1)[0].topk(min(TOP_CLASSES, len(classes)))
        names = [printable(classes[k]) for k in top.indices.tolist()]
        return {
            "classes": list(zip(names, top.values.tolist(), strict=True)),
            "explained": printable(classes[int(cam.classes[0])]),
            "empty": bool(cam.empty[0]),
            "image": _png(rgb),
            "overlay": _png(overlay(rgb, heat.cpu().numpy())),
        }

    def _run_exclusively(self, call: Callable[[], Any]) -> Any:
        with self.lock:
            return call()


def _data_of(view_inputs: ViewInputs) -> str:
    """Return the name of the dataset for a report, or "" if there is none."""
    try:
        return view_inputs.recipe.data
    except UsageError:  # weights without a run, and no --data
        return ""


def _same_origin_only(handler: Handler, hosts: Collection[str]) -> Handler:
    """Refuse requests that name another host or come from another origin."""

    async def check_origin(request: Request) -> Response:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if host not in hosts or origin not in (None, f"http://{host}"):
            return _error("this page is only available on the machine that serves it", 403)
        response = await handler(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        # Responses depend on the weights, which may be replaced.
        response.headers["Cache-Control"] = "no-store"
        return response

    return check_origin


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.detail, error.status_code)


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": printable(message)}, status)


async def _read_body(request: Request) -> bytes:
    """Return the request body; raise HTTPException after `MAX_BYTES`."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"the image has more than {MAX_BYTES:,} bytes")
    return bytes(content)


def _decode_image(content: bytes, weights: Weights) -> torch.Tensor:
    """Return the image, uint8 C H W; raise CorruptError if it is damaged or unsupported."""
    with tempfile.TemporaryDirectory() as folder:
        # Write a file, because read_image checks its format and size before decoding.
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_image(path, weights.in_channels, weights.preprocessing.reading)
        except ZooError as error:
            # The temporary path means nothing to the user.
            error.message = error.message.removeprefix(f"{path}: ")
            raise


def _png(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
