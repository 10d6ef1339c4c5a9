"""The requests of the prediction page: the classes of one image, then its views and the Grad-CAM of each member."""

from __future__ import annotations

from dataclasses import dataclass

from config.errors import DataError, TandemError
from data.pixels import data_uri
from infer.explain.report import explain, gradcam_overlays
from infer.runner import Runner
from infer.web import Request, Response, as_json


@dataclass(frozen=True)
class Limits:
    """Limits of an upload: bytes of a file, pixels of an image."""

    size: int = 20 * 2**20
    pixels: int = 50_000_000


def predict(runner: Runner, request: Request, limits: Limits, gradcam: bool = True) -> Response:
    """The prediction for the encoded image that is the request's body, as `Explanation.as_json`.

    With `?pictures` instead the views that the members saw and, with `gradcam`, where each of them looked: JPEGs in
    data URIs by name. An image that cannot be read gets status 422 and an `error`, all else that fails 500.
    """
    data = request.body(limits.size)
    try:
        explanation = explain(runner, data, limits.pixels)
        if "pictures" not in request.query:
            return as_json(explanation.as_json())
        overlays = gradcam_overlays(runner, data, limits.pixels, explanation.label) if gradcam else {}
    except TandemError as error:
        return as_json({"error": str(error)}, 422 if isinstance(error, DataError) else 500)
    pictures = {"views": explanation.views, "looks": overlays}
    return as_json({key: {name: data_uri(image) for name, image in of.items()} for key, of in pictures.items()})
