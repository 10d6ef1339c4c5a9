"""Which files are images, by their suffix."""

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .avif .heic .heif .jp2 .pbm .pgm .ppm .pnm".split()  # noqa: SIM905
)
