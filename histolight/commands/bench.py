"""``histolight bench``: what the input path and the step cost here, as one table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from histolight import files
from histolight.config.keys import new_folder, own_keys, read_path
from histolight.errors import RequestError, system_reason
from histolight.progress import waiting

KEYS = ("hydra.run.dir", "against")
USAGE = """\
keys (KEY=VALUE):
  against=FILE       bench.json of an earlier time: prints the change of each figure
  hydra.run.dir=DIR  where bench.json goes; outputs/bench/NAME-TIME unless given
  ...                every group and key of a training, such as data=kaggle data.root=DIR model=densenet121
                     (see histolight train --help). data.limit=500 makes it short.
"""
SECTIONS = {
    "tiles_per_second": {
        "notebook": "(a) the notebook's loader, in the main process",
        "notebook_workers": "(a) the notebook's loader, a worker a core",
        "input_flips": "(b) our input path, flips as the notebook",
        "input_dihedral": "(b) our input path, dihedral",
        "step": "(c) the bare step on one resident batch",
        "epoch": "(d) an epoch of training",
        "validation": "(e) validation",
    },
    "ratios": {
        "input_over_notebook": "(b)/(a) flips, one process each",
        "epoch_over_step": "(d)/(c)",
    },
    "memory_mb": {"anonymous": "this process at its peak, without page cache", "gpu": "GPU at its peak"},
    "seconds": {
        "pack": "pack the tiles",
        "help": "histolight --help",
        "cfg_job": "histolight train --cfg job",
        "first_batch": "from the start to the first batch",
    },
}
UNITS = {"tiles_per_second": "tiles/s", "ratios": "ratio", "memory_mb": "MB", "seconds": "s"}


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    values, others = own_keys(overrides, KEYS)
    before = read_figures(read_path(values["against"])) if "against" in values else None
    if any(override.startswith(("run=", "sweep=")) for override in others):
        raise RequestError("histolight bench measures a configuration: to take that of a run use like=DIR")
    from histolight.config.checks import check_weights_file
    from histolight.config.compose import typed
    from histolight.config.request import requested_config
    from histolight.data.sources import check_labelled

    config = typed(requested_config(others))
    if config.trainer.strategy != "auto" or config.trainer.devices != "1" or config.trainer.num_nodes != 1:
        raise RequestError("histolight bench measures one device: use trainer=cpu, gpu or auto with trainer.devices=1")
    directory = new_folder(values.get("hydra.run.dir"), "bench", config.name)
    check_labelled(config.data)
    check_weights_file(config.model.weights)
    with waiting("starting PyTorch"):
        from histolight.training.bench import bench

    with files.claimed(directory):
        figures = bench(others, directory)
        files.write_atomically(directory / "bench.json", json.dumps(figures, indent=2) + "\n")
    print(table(figures, before))
    print(f"\nfigures      {directory / 'bench.json'}")
    return 0


def read_figures(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``bench.json``.

    Raises:
        RequestError: It is missing or damaged.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        complete = all(
            isinstance(figures[section][name], int | float | None) for section in SECTIONS for name in SECTIONS[section]
        )
        if not complete or not isinstance(figures["machine"], dict):
            raise ValueError("it has figures that are no numbers")
    except OSError as error:
        raise RequestError(f"against={path} can't be read: {system_reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"against={path} is not a whole bench.json: {error}") from error
    return figures


def table(figures: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]] | None = None) -> str:
    """Write the figures as lines, each beside the one from before and the change in percent where there is one."""
    machine = figures["machine"]
    lines = [
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}; {machine['model']}, "
        f"batch {machine['batch_size']}, {machine['precision']}, compile {machine['compile']}, "
        f"{machine['tiles']:,} training tiles of {machine['source']}"
    ]
    if before is not None:
        others = [
            name for name, value in machine.items() if name != "git_commit" and before["machine"].get(name) != value
        ]
        if others:
            lines.append(f"measured under other circumstances before: {', '.join(others)}")
    for section, labels in SECTIONS.items():
        heading = f"\n{UNITS[section]:<50}{'now':>10}"
        lines.append(heading if before is None else f"{heading}{'before':>10}{'change':>10}")
        for name, label in labels.items():
            now = figures[section][name]
            line = f"  {label:<48}{_number(now):>10}"
            if before is not None:
                earlier = before[section][name]
                change = f"{now / earlier - 1:+.1%}" if now is not None and earlier else "-"
                line += f"{_number(earlier):>10}{change:>10}"
            lines.append(line)
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Write three digits or all whole ones; a dash is what can't be measured here.

    >>> _number(12345.6), _number(0.98123), _number(None)
    ('12,346', '0.981', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
