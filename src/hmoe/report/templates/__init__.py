"""Templates of pages: their HTML, style and script."""
