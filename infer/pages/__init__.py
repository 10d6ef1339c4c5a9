"""Pages with everything inside: templates, the plots and figures that several pages have, and thumbnails."""
