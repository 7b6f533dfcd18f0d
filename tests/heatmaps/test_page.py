from __future__ import annotations

from dataclasses import replace

import pytest

from histolight.heatmaps.page import SlideReport, answer, notes, pixel_size_note
from histolight.heatmaps.score import SlideSettings

SETTINGS = SlideSettings(None, 0.1, 0.972, 96, 32, "otsu", 0.5, 64)


def row(slide: str, tumour: float) -> dict[str, object]:
    return {"slide": slide, "tumour_mm2": tumour, "tissue_mm2": 2.0}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("a", 0.5)], "Above the threshold: a, 0.5 mm² of 2 mm² of tissue."),
        ([row("a", 0.0)], "No tile of a is above the threshold."),
        ([row("a", 0.0), row("b", 0.0)], "0 of 2 slides have tiles above the threshold."),
        (
            [row("a", 0.5), row("b", 1.5), row("c", 0.0)],
            "2 of 3 slides have tiles above the threshold; most of them b, 1.5 mm² of 2 mm² of tissue.",
        ),
    ],
)
def test_the_answer_names_the_slide_with_most_tumour(rows: list[dict[str, object]], sentence: str) -> None:
    assert answer(SlideReport(["run"], "none", SETTINGS, rows, {}, []))[0] == sentence


def test_the_notes_say_how_much_of_benign_tissue_is_called_tumour_where_it_was_measured() -> None:
    known = SlideReport(["run"], "none", SETTINGS, [], {}, [], {"value": 0.938, "low": 0.92, "high": 0.951})
    assert "specificity of 0.938 [0.920, 0.951] on its own tiles" in notes(known)[-1]
    assert len(notes(SlideReport(["run"], "none", SETTINGS, [], {}, []))) == len(notes(known)) - 1


def test_a_pixel_size_that_took_the_place_of_the_files_own_is_said() -> None:
    settings = replace(SETTINGS, mpp=0.972)
    scored = {"slide": "a", "tumour_mm2": 0.0, "tissue_mm2": 2.0, "mpp": 0.972, "tile_mpp": 0.972}
    rows = [scored | {"stated_mpp": 0.499}, scored | {"slide": "b", "stated_mpp": None}]
    rows.append(scored | {"slide": "c", "stated_mpp": 0.97})
    [sentence] = [line for line in answer(SlideReport(["run"], "none", settings, rows, {}, [])) if "data.mpp" in line]
    assert sentence.startswith("data.mpp=0.972 was taken for every slide")
    assert "another pixel size: a (0.499 µm)." in sentence
    assert pixel_size_note(rows[0], settings) == "tiles at 0.972 µm; the file says 0.499 µm"
    assert [pixel_size_note(row, settings) for row in rows[1:]] == ["tiles at 0.972 µm"] * 2
