from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from fake_runs import fake_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from histolight import runs
from histolight.ranking.answer import answer
from histolight.ranking.page import write_report
from histolight.ranking.ranking import Ranking, compare_runs
from histolight.ranking.searched import JOURNAL, STUDY, search_figures

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def searched(folder: Path, parts: tuple[str, ...]) -> Path:
    """Write a search of four points, one of them pruned, of which two have three further seeds; and its study."""
    folder.mkdir(exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    for rate in RATES:
        for dropout in ("0", "0.5"):
            trial = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})
            trial.suggest_categorical("model.dropout", ["0", "0.5"])
            study.tell(trial, 0.8 + rate + float(dropout))
    for rate in RATES[:3]:
        first = fake_run(folder / f"{rate}_0", parts=parts, optimizer__lr=rate)
        runs.update_metrics(first, chose_from=4)
    fake_run(folder / "pruned", status="pruned", reason="successive halving stopped it", optimizer__lr=RATES[3])
    for rate in RATES[1:3]:
        for seed in (1, 2, 3):
            fake_run(folder / f"{rate}_{seed}", parts=parts, optimizer__lr=rate, seed=seed)
    return folder


def not_ranked(ranking: Ranking) -> dict[str, str]:
    return {row.directories[0].name: row.status for row in ranking.unranked}


def test_the_seed_that_chose_leaders_is_not_counted_and_pruned_points_are_not_ranked(tmp_path: Path) -> None:
    ranking = compare_runs([searched(tmp_path, ("val", "test"))])
    assert ranking.pairs == [(None, 1), (None, 2), (None, 3)]
    assert sorted(row.config["optimizer.lr"] for row in ranking.rows) == [1e-3, 1e-2]
    assert not_ranked(ranking) == {"0.0001_0": "not chosen", "pruned": "pruned"}
    assert (ranking.unit, ranking.uncounted) == ("configuration", 0)
    said = " ".join(answer(ranking))
    assert "chosen from 4 by the validation AUROC of seed 0, which the verdict does not count" in said
    assert "can't be ranked" not in said


def test_leaders_are_not_judged_by_the_validation_tiles_that_chose_them(tmp_path: Path) -> None:
    ranking = compare_runs([searched(tmp_path, ("val",))])
    assert "can't be ranked: their points were chosen on these same validation tiles" in answer(ranking)[0]


def test_what_a_pruner_left_is_not_judged_by_the_validation_tiles_that_it_judged_by(tmp_path: Path) -> None:
    for rate in RATES[:2]:
        fake_run(tmp_path / str(rate), parts=("val",), optimizer__lr=rate)
    assert "can't be ranked" not in answer(compare_runs([tmp_path]))[0]
    fake_run(tmp_path / "pruned", status="pruned", reason="successive halving stopped it", optimizer__lr=RATES[3])
    reason = "can't be ranked: their points were chosen on these same validation tiles"
    assert reason in answer(compare_runs([tmp_path]))[0]
    assert compare_runs([tmp_path], by="optimizer.lr").rows == []  # the one seed of each chose


def test_first_seeds_alone_are_compared_as_ever(tmp_path: Path) -> None:
    for rate in RATES:
        runs.update_metrics(fake_run(tmp_path / str(rate), optimizer__lr=rate), chose_from=4)
    ranking = compare_runs([tmp_path])
    assert len(ranking.rows) == 4
    assert ranking.chosen_by == []


def test_the_page_shows_importances_and_slices(tmp_path: Path) -> None:
    sweep = searched(tmp_path / "sweep", ("val", "test"))
    write_report(compare_runs([sweep]), tmp_path / "out", "Comparison")
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"importances_sweep.png", "slices_sweep.png"} <= drawn
    assert "Importance of each parameter of sweep" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("completed", [3, 4])
def test_figures_are_drawn_of_four_points_with_a_result(
    completed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    study = optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    for number in range(5):
        trial = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})
        study.tell(trial, 0.8 if number < completed else None, None if number < completed else TrialState.FAIL)
    asked = []

    def draw(study: optuna.Study, target_name: str) -> Axes:
        asked.append((len(study.trials), target_name))
        return Figure().add_subplot()

    for name in ("plot_param_importances", "plot_slice"):
        monkeypatch.setattr(f"optuna.visualization.matplotlib.{name}", draw)
    drawn = list(search_figures([tmp_path / "0", tmp_path / "1"]))
    assert [name for name, _, _ in drawn] == [f"{what}_{tmp_path.name}" for what in ("importances", "slices")] * (
        completed == 4
    )
    assert all(f"of {tmp_path.name}, by the validation AUROC of its 4 points" in caption for _, _, caption in drawn)
    assert asked == [(5, "validation AUROC")] * len(drawn)


def test_a_damaged_or_missing_study_costs_its_figures_only(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("{}\n{}\n")
    (tmp_path / "other").mkdir()
    assert list(search_figures([tmp_path / "0", tmp_path / "other" / "0"])) == []
    assert not list((tmp_path / "other").iterdir())
