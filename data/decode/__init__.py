"""From a file to RGB pixels, whatever its format and state."""
