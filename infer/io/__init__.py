"""What goes into inference and what comes out: images, archives, journals, submissions."""
