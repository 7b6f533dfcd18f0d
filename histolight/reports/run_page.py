"""The page of one run, or of one evaluation, made of nothing but the files in its folder."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from histolight.data.sources import is_artificial
from histolight.data.table import PARTS, SPLITS, split_note
from histolight.files import write_atomically
from histolight.reports.by_slide import domains_section, slides_section
from histolight.reports.calls import calls_section, chosen_on
from histolight.reports.curves import curve_figures, read_curves
from histolight.reports.model_card import model_card
from histolight.reports.page import Cell, Picture, Section, Table, render_page
from histolight.reports.parts import (
    as_jpeg,
    figure_remarks,
    interval_text,
    known_tiles,
    pairs,
    problem_table,
    saved_picture,
    score_texts,
    what_was_chosen,
)
from histolight.runs import read_config, read_metrics, read_predictions, read_splits
from histolight.statistics.clusters import FEW_SLIDES
from histolight.statistics.figures import FIGURES
from histolight.statistics.slides import slides_of_classes

LEADING = ("test", "val")  # the part that nothing was chosen on leads
LOSSES = (
    "NLL: the mean negative log-likelihood of the labels. ECE: the expected calibration error, by how much scores and "
    "the share of tumour differ, in 15 bins of the score."
)
METHODS = {
    "delong": "DeLong's variance on the logit scale",
    "obuchowski": "the variance over slides, or groups of overlapping tiles (Obuchowski 1997), on the logit scale",
    "clopper-pearson": "Clopper-Pearson",
    "korn-graubard": "Clopper-Pearson with the effective number of tiles (Korn and Graubard 1998)",
    "mover": "from the intervals of sensitivity and specificity (Zou and Donner 2008)",
    "linearised": "linearised, on the logit scale",
    "gamma": "a gamma distribution (Fay and Feuer 1997)",
    "woodruff": "from the thresholds that the interval of the specificity leaves (Woodruff 1952)",
}
PICTURES = {
    "roc": "ROC of the {part} tiles.",
    "precision_recall": "Precision against recall; the area under the steps is the average precision.",
    "reliability": "Reliability: the share of tumour among tiles of about the same score, and how many there are.",
    "reliability_calibrated": "Reliability after calibration.",
    "confusion": "Calls at the threshold, in tiles.",
    "worst_calls": "The surest of the wrong calls on {part} tiles, with label and score. The frame marks the centre, "
    "which decides the label.",
    "slides": "Slides of the {part} tiles, those with the most tumour: the annotated tumour, outlined, and each tile's "
    "centre in the colour of its label, purple for tumour; beside it the score of each tile.",
}
PHOTOGRAPHS = ("worst_calls", "slides")


def write_run_report(directory: Path) -> Path:
    """Write ``report.html``, and the training curves to ``figures/``.

    Args:
        directory: A run directory, or the folder of an evaluation. What is not there is left out of the page.

    Returns:
        The path of the page.

    Raises:
        RequestError: The folder has no ``metrics.json``, or a damaged one.
        HistolightError: The page can't be written.
    """
    metrics = read_metrics(directory)
    config, training = (
        read_config(path) if (path := directory / f"{name}.yaml").is_file() else {} for name in ("config", "training")
    )
    predictions = {
        part: table for part in LEADING if part in metrics if (table := _predictions(directory, part)) is not None
    }
    sections = [
        _figures_section(metrics, predictions, config),
        calls_section(metrics, config, list(predictions)),
        *[section for part in LEADING if (section := _pictures(directory, part)).pictures],
        _training(directory),
        *[slides_section(table, part, metrics) for part, table in predictions.items()],
        *[domains_section(part, metrics) for part in predictions],
        _data(metrics, slides_of_parts(directory, predictions), config),
        _checks(directory),
        _cost(metrics),
        Section("Model card", table=model_card(metrics, config, training or config, predictions)),
        Section("Configuration", table=_settings(config)),
        Section("Provenance", table=_provenance(directory, metrics)),
    ]
    kind = "Evaluation" if "run" in metrics else "Run"
    title = f"{kind} {directory.resolve().name}"
    footer = f"histolight {version('histolight')}, {datetime.now():%Y-%m-%d %H:%M}. For research; not for diagnosis."
    shown = [section for section in sections if section is not None and (section.table is None or section.table.rows)]
    path = directory / "report.html"
    write_atomically(path, render_page(title, answer(metrics, predictions, config), shown, footer))
    return path


def answer(metrics: dict[str, Any], predictions: dict[str, pd.DataFrame], config: dict[str, Any]) -> list[str]:
    """Say how good the model is, on which tiles and how sure that is; then what to beware of."""
    network = config.get("model", {}).get("name", "the network")
    parts = [part for part in LEADING if part in metrics]
    ended = (
        ""
        if metrics["status"] in ("completed", "running")
        else f"This run is {metrics['status']}: {metrics.get('reason')}."
    )
    if not parts:
        return [ended or f"{network} has not been measured yet."]
    lead, *others = parts
    auroc = metrics[lead]["auroc"]
    known_to_it = f", of which {known_tiles(seen, metrics.get('recognised'))}" if (seen := metrics.get("seen")) else ""
    kind = ("" if seen else "other ") if metrics["split"] == "other" else f"{PARTS[lead]} "
    tiles = f"{_count(metrics, lead):,} {kind}tiles"
    slides = predictions[lead]["group"].nunique() if lead in predictions else 0
    known = {
        "slide": f" of {slides} slides that it was not trained on"
        if slides
        else " of slides that it was not trained on",
        "other": f" of {slides} slides" if slides else "",
    }.get(metrics["split"], f" ({SPLITS[metrics['split']].partition(':')[0]})")
    chosen = what_was_chosen(metrics)
    stamp = f", {metrics['adapted']['sentence']}," if metrics.get("adapted") else ""
    sentences = [f"On {tiles}{known}{known_to_it}, {network}{stamp} finds tumour with AUROC {_figure(auroc)}."]
    if lead == metrics.get("selected_on") and metrics["split"] != "other":
        sentences.append(
            f"{chosen[0].upper()}{chosen[1:]} was chosen by its AUROC on these same tiles, and so was the threshold: "
            "the figures are optimistic, the more so the fewer tiles. A test part (data.test_fraction=0.2) has no part "
            "in any choice."
            if chosen
            else "The threshold was chosen on these same tiles: figures at it are optimistic, the more so the fewer "
            "tiles."
        )
    elif seen:
        sentences.append("The figures flatter it, as it knows those.")
    else:
        but = "But for the adaptation, which saw no label, nothing" if stamp else "Nothing"
        sentences.append(f"{but} was chosen on these tiles: neither {chosen or 'the epoch'} nor the threshold.")
    sentences += [
        f"On the {_count(metrics, part):,} {PARTS[part]} tiles, on which {chosen or 'the threshold'} was chosen, it is "
        f"{_figure(metrics[part]['auroc'])}."
        for part in others
    ]
    if metrics["split"] != "other":
        sentences.append(_sentence(split_note(metrics)))
    elif not slides:
        sentences.append(
            "Their slides are unknown: the interval knows tiles that overlap but no slides, and is likely too short."
        )
    like = "the interval rests on others being like them" if auroc["low"] is not None else "others may be unlike them"
    if 0 < slides < FEW_SLIDES:
        sentences.append(f"These are tiles of only {slides} slides: {like}.")
    elif slides:
        counts = slides_of_classes(predictions[lead])
        fewest, label = min(((count, label) for label, count in counts.items()), default=(FEW_SLIDES, 0))
        if fewest < FEW_SLIDES:
            tiles = f"{'tumour' if label else 'benign'} tiles of only {fewest} of these slides"
            sentences.append(f"There are {tiles}: {like}.")
    if is_artificial(config.get("data", {}).get("source")):
        sentences.append("The tiles are synthetic: the figures say nothing of real tissue.")
    return [*sentences, *[ended] * bool(ended)]


def _count(metrics: dict[str, Any], part: str) -> int:
    return sum(metrics["tiles"][part].values())


def _figure(figure: dict[str, Any]) -> str:
    """Write a figure that no line break takes apart."""
    text = f"{figure['value']:.3f} {interval_text(figure['low'], figure['high'], 3)}"
    text += " (95 % interval)" * (figure["low"] is not None)
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _predictions(directory: Path, part: str) -> pd.DataFrame | None:
    path = directory / "predictions" / f"{part}.csv"
    return read_predictions(path) if path.is_file() else None


def _figures_section(
    metrics: dict[str, Any], predictions: dict[str, pd.DataFrame], config: dict[str, Any]
) -> Section | None:
    threshold = metrics.get("threshold")
    stamp = f", {metrics['adapted']['sentence']}" if metrics.get("adapted") else ""
    columns = {
        f"{part}{ending}": heading
        for part, name in ((part, f"{PARTS[part]}{stamp}") for part in LEADING)
        for ending, heading in (
            ("", name),
            ("_at_threshold", f"{name} at {score_texts(threshold)[0]}" if threshold is not None else ""),
            ("_calibrated", f"{name}, calibrated"),
        )
        if f"{part}{ending}" in metrics
    }
    if not columns:
        return None
    rows = []
    for name, figure in FIGURES.items():
        measured = [metrics[column].get(name) for column in columns]
        if any(measured):
            cells = [_cell(one["value"], one["low"], one["high"]) if one else Cell("") for one in measured]
            rows.append([Cell(figure.heading, "" if figure.higher_is_better else "lower is better"), *cells])
    notes = [f"With 95 % intervals. {_methods([metrics[column] for column in columns])}", LOSSES]
    if threshold is not None:
        chosen = (
            f"Calls at 0.5, and at {score_texts(threshold)[0]}: the threshold of the highest balanced accuracy on "
            f"{chosen_on(metrics)}"
        )
        notes.append(
            f"{chosen}, whose own figures at it are therefore optimistic." if "val" in metrics else f"{chosen}."
        )
    if metrics.get("temperature") is not None:
        shift = f", then {metrics['intercept']:+.4f}" if metrics.get("intercept") else ""
        notes.append(
            f"Calibrated: logits divided by {metrics['temperature']:.4f}{shift}, fitted on {chosen_on(metrics)}."
        )
    notes += figure_remarks({heading: metrics[column] for column, heading in columns.items()})
    return Section("How good it is", table=Table(["", *columns.values()], rows, words=1), notes=notes)


def _methods(measured: list[dict[str, Any]]) -> str:
    """Say by which method each figure has its interval, the figures of one method together."""
    headings: dict[str, dict[str, None]] = {}
    for figures in measured:
        for name, figure in FIGURES.items():
            if (method := figures.get(name, {}).get("method", "none")) != "none":
                headings.setdefault(method, {})[figure.heading] = None
    sentences = []
    for method, names in headings.items():
        text = f"{', '.join(names)}: {METHODS.get(method, method)}."
        sentences.append(f"{text[0].upper()}{text[1:]}")
    return " ".join(sentences)


def _cell(value: float, low: float | None, high: float | None) -> Cell:
    return Cell(f"{value:.4f}", interval_text(low, high))


def _pictures(directory: Path, part: str) -> Section:
    pictures = [
        Picture(
            as_jpeg(path.read_bytes()) if name in PHOTOGRAPHS else path.read_bytes(),
            caption.format(part=PARTS[part]),
            wide=name in PHOTOGRAPHS,
        )
        for name, caption in PICTURES.items()
        if (path := directory / "figures" / f"{part}_{name}.png").is_file()
    ]
    return Section(f"The {PARTS[part]} tiles in pictures", pictures=pictures)


def _training(directory: Path) -> Section | None:
    figures = curve_figures(read_curves(directory))
    pictures = [
        saved_picture(figure, directory / "figures" / f"{name}.png", caption)
        for name, (figure, caption) in figures.items()
    ]
    return Section("How it was trained", pictures=pictures) if pictures else None


def slides_of_parts(directory: Path, predictions: dict[str, pd.DataFrame]) -> dict[str, int]:
    """Count the slides of each part, as the run's split has them, or else the predictions of those that have any."""
    groups = {part: table["group"] for part, table in predictions.items()}
    if (directory / "splits.csv").is_file() and "group" in (splits := read_splits(directory)):
        groups |= dict(iter(splits.groupby("split")["group"]))
    return {part: slides.nunique() for part, slides in groups.items()}


def _data(metrics: dict[str, Any], slides_of: dict[str, int], config: dict[str, Any]) -> Section | None:
    if not metrics.get("tiles"):
        return None
    data = config.get("data", {})
    rows = []
    for part in ("train", "val", "test"):
        if part in metrics["tiles"]:
            benign, tumour = (metrics["tiles"][part].get(label, 0) for label in ("0", "1"))
            cells = [f"{benign + tumour:,}", f"{benign:,}", f"{tumour:,}", f"{tumour / (benign + tumour):.1%}"]
            slides = slides_of.get(part, 0)
            rows.append(
                [Cell({"train": "training", **PARTS}[part]), *map(Cell, cells), Cell(f"{slides:,}" if slides else "")]
            )
    columns = ["part", "tiles", "benign", "tumour", "tumour share", "slides"]
    if not any(row[-1].text for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    root = f" from {data['root']}" if data.get("root") else ""
    limit = f", {data['limit']:,} drawn of them (data.limit)" if data.get("limit") else ""
    words = [f"Tiles of data={data.get('source')}{root}{limit}. {_sentence(split_note(metrics))}"]
    if metrics["split"] == "slide":
        words[0] += f" There are {metrics['slides']} slides in all."
    words += [f"{part}: {text}." for part, text in metrics.get("origin", {}).items()]
    words += [_sentence(note) for note in metrics.get("notes", [])]
    return Section("The tiles and their split", words, Table(columns, rows, words=1))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _checks(directory: Path) -> Section:
    path = directory / "data_problems.csv"
    if not path.is_file():
        return Section("What the checks found", ["No near-blank tiles, and no tiles with exactly the same pixels."])
    problems = pd.read_csv(path, dtype=str, keep_default_na=False)
    notes = ["All of them are in data_problems.csv."]
    return Section("What the checks found", table=problem_table(problems), notes=notes)


def _cost(metrics: dict[str, Any]) -> Section | None:
    rows = {
        "training, with validation": ("seconds", lambda value: f"{value:,.0f} s"),
        "epochs": ("epochs", lambda value: f"{value}"),
        "training speed": ("tiles_per_second", lambda value: f"{value:,.0f} tiles/s"),
        "waiting for data": ("data_wait_seconds", lambda value: f"{value:,.0f} s"),
        "peak memory": ("peak_memory_mb", lambda value: f"{value:,.0f} MB"),
        "parameters": ("parameters", lambda value: f"{value / 1e6:.2f} million"),
    }
    known = [(name, text(metrics[key])) for name, (key, text) in rows.items() if metrics.get(key) is not None]
    if not known:
        return None
    return Section("What it cost", table=pairs(known))


def _settings(config: dict[str, Any]) -> Table:
    rows = []
    for group, values in config.items():
        known = values.items() if isinstance(values, dict) else [("", values)]
        rows.append((group, ", ".join(f"{key} {_value(value)}".strip() for key, value in known)))
    return pairs(rows)


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _provenance(directory: Path, metrics: dict[str, Any]) -> Table:
    machine = metrics.get("machine", {})
    known = {
        "folder": str(directory.resolve()),
        "run": metrics.get("run"),
        "test-time augmentation": metrics.get("tta"),
        "commit": metrics.get("git_commit"),
        "machine": ", ".join(
            filter(None, [machine.get("platform"), f"{machine['cpus']} CPUs" if machine.get("cpus") else ""])
        ),
        "tiles (fingerprint)": metrics.get("data_fingerprint"),
        "versions": ", ".join(f"{name} {number}" for name, number in metrics.get("versions", {}).items()),
    }
    return pairs([(name, text) for name, text in known.items() if text])
