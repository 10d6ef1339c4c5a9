"""The type of decoded images, and images as JPEG."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB
_QUALITY = 80


def encode_jpeg(image: Pixels, quality: int, *options: int) -> NDArray[np.uint8]:
    """The bytes uint8 `[N]` of an RGB image as a JPEG of `quality` (1 to 100); `options` are further ones of cv2."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1]


def data_uri(image: Pixels) -> str:
    """An RGB image as a JPEG in a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, _QUALITY).tobytes()).decode()
