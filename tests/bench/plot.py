"""`python -m tests.bench.plot`: build/bench.json, which `make bench` left, as the picture that the README shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIGURES = Path("build/bench.json")
PICTURE = Path(__file__).with_name("bench.png")

BARS = {
    "naive": "naive: FastStream, eight workers,\none transaction per event",
    "careful": "careful: FastStream, batches of 500",
    "service": "the service, one process",
    "two_processes": "the service, two processes",
    "limit": "Postgres alone: the same changes\nof rows, no reads, no Kafka",
}
OURS, OTHERS = "#2f6fa8", "#a9b7c4"


def plot(report: dict[str, Any], path: Path) -> None:
    """Returns decided per second by contestant, each with its ratio to the service."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    measured = report["events_per_second"]
    measured = {**measured, "limit": max(rate for name, rate in measured.items() if name.startswith("limit_"))}
    rates = [measured[name] for name in BARS]
    figure, axes = plt.subplots(figsize=(8, 3))
    colours = [OURS if "service" in label else OTHERS for label in BARS.values()]
    bars = axes.barh(list(BARS.values()), rates, color=colours)
    labels = [f"{rate:,}  ({rate / measured['service']:.2f} ×)" for rate in rates]
    axes.bar_label(bars, labels=labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    runs = "one round" if report["rounds"] == 1 else f"median of {report['rounds']} rounds"
    axes.set_xlabel(f"returns decided per second ({report['events']:,} returns, {runs}; × the service)", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.margins(x=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    plot(json.loads(FIGURES.read_text()), PICTURE)
