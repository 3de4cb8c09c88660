"""How good a video is; one file per family of metrics."""
