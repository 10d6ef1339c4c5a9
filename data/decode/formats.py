"""Which image files can be read, by suffix, and what a file is that holds no image which can be read."""

from __future__ import annotations

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .dib .tif .tiff .gif .avif .heic .heif .jp2 .j2k .jpx .jpf .pbm"  # noqa: SIM905
    " .pgm .ppm .pnm".split()
)
# Images that are passed over: no decoder for them is installed with Tandem.
PASSED_OVER = {
    ".jxl": "JPEG XL",
    ".svg": "a drawing of lines",
    ".psd": "Photoshop",
    ".dcm": "DICOM",
    ".nii": "NIfTI",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    **dict.fromkeys(".dng .cr2 .cr3 .nef .arw .orf .rw2 .raf".split(), "a raw photograph"),  # noqa: SIM905
}

_STARTS = (
    (b"version https://git-lfs", "is a Git LFS pointer; run: git lfs pull"),
    (b"<!doctype html", "is a web page, as a failed download leaves it; download it again"),
    (b"<html", "is a web page, as a failed download leaves it; download it again"),
    (b"<svg", "is an SVG drawing; save it as PNG"),
    (b"%pdf", "is a PDF; save its pages as PNG"),
    (b"8bps", "is a Photoshop file; save it as PNG"),
    (b"\xff\x0a", "is JPEG XL; save it as PNG"),
    (b"\0\0\0\x0cjxl ", "is JPEG XL; save it as PNG"),
    (b"pk\x03\x04", "is a zip archive; unpack it"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it"),
    (b"v/1\x01", "is OpenEXR, whose values have no known range; save it with 8 or 16 bits a channel"),
)


def mistaken(data: bytes) -> str | None:
    """What a file is that is no image Tandem reads, and what to do about it; None where that is not known."""
    if not data:
        return "is empty; replace or remove the file"
    if not data.strip(b"\0"):
        return "holds nothing but zeros, as a broken copy leaves it; replace or remove the file"
    if data[128:132] == b"DICM":
        return "is DICOM; save it as PNG"
    start = data[:512].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if start.startswith(b"<?xml") and b"<svg" in start:
        return "is an SVG drawing; save it as PNG"
    return next((text for begin, text in _STARTS if start.startswith(begin)), None)
