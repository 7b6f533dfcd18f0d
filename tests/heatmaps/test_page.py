from __future__ import annotations

import pytest

from histolight.heatmaps.page import SlideReport, answer, notes
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
