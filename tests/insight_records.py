"""Insights of each kind, as a tracker records them, with their files in a run's folder."""

import gzip
from typing import Any

import numpy as np
from PIL import Image as Picture

from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Insight

T0_MS = 1_700_000_000_123
LABELS = [["a\tcat", "1"], ["", ""], ["dög", "2"], ["=x", "3"], ["<b>", "4"]]


def histogram(*counts: int, first: float = -1.0) -> dict[str, Any]:
    """Counts in buckets of a half each."""
    edges = [first + 0.5 * number for number in range(len(counts) + 1)] if counts else []
    return {
        "edges": edges, "counts": list(counts), "count": sum(counts), "sampled": sum(counts),
        "min": -1.0, "max": 1.0, "mean": 0.0, "std": 0.5, "norm": 2.0, "nans": 0, "infs": 0,
        "zeros_share": 0.0,
    }  # fmt: skip


def histograms(step: int = 5, *, key: str = "weights") -> Insight:
    """Of two layers, one of them without a finite value."""
    content = {"encoder.conv": histogram(3, 4, step, 1), "dead": histogram()}
    return Insight(T0_MS + step, step, key, "histograms", {"histograms": content})


def graph(step: int = 0, *, key: str = "model", last: str = "relu") -> Insight:
    """Three nodes, the last of which is in a module of its own."""

    def node(name: str, op: str, *inputs: str) -> dict[str, Any]:
        shapes, about = [[1, 4, 8, 8]], {"kernel_size": "3"}
        return {"name": name, "op": op, "inputs": [*inputs], "shapes": shapes, "attributes": about}

    nodes = [
        node("x", "input"),
        node("encoder/conv", "Conv2d", "x"),
        node(f"encoder/{last}", "ReLU", "encoder/conv", "gone"),
    ]
    content = {"nodes": nodes, "of": "Autoencoder", "by": "modules", "parameters": 112}
    return Insight(T0_MS + step, step, key, "graph", content)


def embedding(folder: RunFolder, step: int = 3, *, key: str = "clips", start: float = 0) -> Insight:
    """Five vectors of three dimensions, with two columns of labels and a picture each."""
    mark = f"{step}-{start}".replace(".", "_")
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3) / 7 + np.float32(start)
    np.save(folder.media / f"vectors-{mark}.npy", vectors)
    sprite = np.zeros((12, 24, 3), np.uint8)
    for number in range(5):
        top, left = number // 3 * 6, number % 3 * 8
        sprite[top : top + 6, left : left + 8] = 40 + 40 * number
    Picture.fromarray(sprite).save(folder.media / f"sprite-{mark}.png")
    content = {
        "count": 5, "dimensions": 3, "columns": ["kind", "d1"], "labels": LABELS, "sprite": [6, 8],
    }  # fmt: skip
    files = {"vectors.npy": f"vectors-{mark}.npy", "sprite.png": f"sprite-{mark}.png"}
    return Insight(T0_MS + step, step, key, "embedding", content, files)


def pr_curve(step: int = 4, *, key: str = "val/cat") -> Insight:
    """Three thresholds; nothing is predicted at the last one."""
    content = {
        "thresholds": [0.0, 0.5, 1.0],
        "true_positives": [4, 3, 0],
        "false_positives": [6, 1, 0],
        "true_negatives": [0, 5, 6],
        "false_negatives": [0, 1, 4],
        "precision": [0.4, 0.75, "nan"],
        "recall": [1.0, 0.75, 0.0],
    }
    return Insight(T0_MS + step, step, key, "pr_curve", content)


def layout(step: int = 0, *, key: str = "layout") -> Insight:
    """A chart of two lines, and one with a margin."""
    charts = [
        {"title": "Both losses", "kind": "multiline", "tags": ["loss/.*", "val/loss"]},
        {"title": "Spread", "kind": "margin", "lower": "low", "value": "mid", "upper": "high"},
    ]
    categories = [{"title": "Losses of ours", "is_closed": False, "charts": charts}]
    return Insight(T0_MS + step, step, key, "layout", {"categories": categories})


def hparams(step: int = 9, *, key: str = "hparams") -> Insight:
    """A number, a text and a switch, with the loss they led to."""
    content = {
        "params": {"lr": 0.1, "optimizer": "adamw", "use_ema": True},
        "results": {"val/loss": 0.25, "never": None},
        "goal": {"val/loss": "minimize"},
    }
    return Insight(T0_MS + step, step, key, "hparams", content)


def trace(folder: RunFolder, step: int = 12, *, key: str = "profiling/trace") -> Insight:
    """Of three steps, in a file for Perfetto."""
    (folder.media / "trace-a.json.gz").write_bytes(gzip.compress(b'{"traceEvents": []}'))
    content = {
        "steps": [10, 12], "top_operators_key": "profiling/top_operators",
        "total_us": {"cpu": 1_234_500.0, "gpu": 0.0}, "made_by": "torch.profiler <2.13>",
    }  # fmt: skip
    files = {"trace.json.gz": "trace-a.json.gz"}
    return Insight(T0_MS + step, step, key, "trace", content, files)


def every_kind(folder: RunFolder) -> list[Insight]:
    """One of each."""
    return [
        histograms(), graph(), embedding(folder), pr_curve(), layout(), hparams(), trace(folder),
    ]  # fmt: skip
