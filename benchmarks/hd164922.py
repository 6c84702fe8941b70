"""A run of HD 164922 against the published posterior (Fulton et al. 2016, ApJ 830, 46, table 3), and against its baselines.

python -m benchmarks.hd164922 runs/hd164922 --figures docs/figures
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from pipeline.config import load_case
from pipeline.stages.report_observations import predictive_views
from pipeline.stages.run import Run
from pipeline.store import open_hdf5
from pipeline.tables.inference_reader import open_inference

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "hd164922.yaml"
PUBLISHED = {
    "P1 (d)": (1195.6, 1201.1, 1206.7),
    "K1 (m/s)": (6.84, 7.15, 7.46),
    "e1": (0.076, 0.126, 0.175),
    "P2 (d)": (75.709, 75.765, 75.823),
    "K2 (m/s)": (1.93, 2.22, 2.52),
    "e2": (0.09, 0.22, 0.35),
    "jitter (m/s)": (2.49, 2.63, 2.78),
}
"""16, 50 and 84 %."""
Array = NDArray[np.float64]


def published_quantities(draws: Array, names: list[str]) -> dict[str, Array]:
    """What the paper tabulates, of draws (K, D)."""
    of = {name: draws[:, d] for d, name in enumerate(names)}
    values: list[Array] = []
    for p in (1, 2):
        values += [of[f"per{p}"], np.exp(of[f"logk{p}"]), of[f"secosw{p}"] ** 2 + of[f"sesinw{p}"] ** 2]
    return dict(zip(PUBLISHED, [*values, of["jit"]], strict=True))


def published_table(draws: Array, names: list[str]) -> list[str]:
    """Rows of a Markdown table; the last column is the difference of medians in units of the published half width."""
    rows = ["| | published | ours | difference, sigma |", "|---|---|---|---|"]
    for name, values in published_quantities(draws, names).items():
        low, middle, high = PUBLISHED[name]
        digits = len(str(middle).split(".")[1])
        ours = np.quantile(values, [0.16, 0.5, 0.84])
        text = [f"{m:.{digits}f} +{h - m:.{digits}f} -{m - s:.{digits}f}" for s, m, h in (PUBLISHED[name], ours)]
        rows.append(f"| {name} | {text[0]} | {text[1]} | {(ours[1] - middle) / ((high - low) / 2):+.2f} |")
    return rows


def baseline_table(path: Path, identifier: str) -> list[str]:
    """What comparison.h5 says of each side: attributes, and draws against ours."""
    rows = []
    with open_hdf5(path) as file:
        group: Any = file[identifier]
        for name, side in group.items():
            numbers = ", ".join(f"{k} {v:.7g}" for k, v in side.attrs.items() if isinstance(v, float))
            rows.append(f"{name}: {numbers}")
    return rows


def main(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run of configs/hd164922.yaml")],
    figures: Annotated[Path | None, typer.Option(help="folder for the figures")] = None,
) -> None:
    """Print the tables, and draw the velocities folded at each planet."""
    run = Run(load_case(CONFIG, []), run_dir)
    with open_inference(run.output("infer")) as inference:
        identifier, draws = inference.ids[0], inference.draws(0)
    names = [p.name for p in run.simulator.parameters]
    typer.echo("\n".join(published_table(draws, names)))
    if run.output("compare").is_file():
        typer.echo("\n".join(baseline_table(run.output("compare"), identifier)))
    for name, figure in (predictive_views(run, draws, 0) if figures else {}).items():
        figure.savefig(figures / f"hd164922_{name.replace(' ', '_')}.png", dpi=110)  # pyright: ignore


if __name__ == "__main__":
    typer.run(main)
