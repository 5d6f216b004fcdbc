"""The commands beside `serve`, one module each: what `mirror.cli` calls."""
