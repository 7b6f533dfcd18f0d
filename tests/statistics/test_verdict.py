import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from histolight.errors import HistolightError, RequestError
from histolight.statistics.figures import metric_intervals
from histolight.statistics.intervals import auroc_ends
from histolight.statistics.planning import Plan, plan_like, power, seeds_needed, tiles_needed
from histolight.statistics.verdict import (
    AurocCovariance,
    auroc_covariance,
    combine_folds,
    holm,
    verdict_of_configurations,
    verdict_of_trainings,
)


def simulated(rows, tiles, slides=None, seed=0, decimals=1):
    """Scores (rows, tiles) with ties, labels, slides."""
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, slides or tiles, tiles)
    labels = (rng.random(tiles) < rng.beta(1, 1.5, slides or tiles)[slide]).astype(int)
    common = 1.5 * labels + rng.normal(size=tiles) + 0.7 * rng.normal(size=slides or tiles)[slide]
    return np.round(common + 0.5 * rng.normal(size=(rows, tiles)), decimals), labels, slide


def naive_covariance(scores, labels, groups):
    """Obuchowski's (1997) terms from loops over pairs of tiles; and a cluster's largest share of the wrong pairs."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n, clusters = len(positives), len(negatives), sorted(set(groups))
    psi = np.zeros((len(scores), m, n))
    for row, values in enumerate(scores):
        for i, x in enumerate(positives):
            for j, y in enumerate(negatives):
                psi[row, i, j] = 1.0 if values[x] > values[y] else 0.5 if values[x] == values[y] else 0.0
    areas = psi.mean(axis=(1, 2))
    with_positive, with_negative = len(set(groups[positives])), len(set(groups[negatives]))
    covariance = np.zeros((len(scores),) * 2)
    for r in range(len(scores)):
        for q in range(len(scores)):
            s10 = s01 = s11 = s11_turned = 0.0
            for cluster in clusters:
                x, y = groups[positives] == cluster, groups[negatives] == cluster
                a_r, a_q = ((psi[k].mean(axis=1)[x] - areas[k]).sum() for k in (r, q))
                b_r, b_q = ((psi[k].mean(axis=0)[y] - areas[k]).sum() for k in (r, q))
                s10, s01, s11, s11_turned = s10 + a_r * a_q, s01 + b_r * b_q, s11 + a_r * b_q, s11_turned + a_q * b_r
            covariance[r, q] = (
                s10 * with_positive / (with_positive - 1) / m / m
                + s01 * with_negative / (with_negative - 1) / n / n
                + (s11 + s11_turned) * len(clusters) / (len(clusters) - 1) / m / n
            )
    inside = [(groups[positives] == cluster, groups[negatives] == cluster) for cluster in clusters]
    blame = [[((1 - row)[x].sum() + (1 - row)[:, y].sum()) / 2 / m / n for x, y in inside] for row in psi]
    return areas, covariance, np.max(blame, axis=1)


@pytest.mark.parametrize("slides", [3, 12, None])
def test_covariance_equals_the_definition(slides):
    scores, labels, groups = simulated(4, 80, slides)
    result = auroc_covariance(scores, labels, groups)
    areas, covariance, hardest = naive_covariance(scores, labels, groups)
    assert result.aurocs == pytest.approx(areas, rel=1e-12)
    assert result.covariance == pytest.approx(covariance, rel=1e-9, abs=1e-12)
    assert result.hardest == pytest.approx(hardest)
    assert result.share == pytest.approx(1 / labels.sum() + 1 / (80 - labels.sum()))


def test_no_tile_by_itself_counts_as_hard():
    scores, labels, _ = simulated(2, 40)
    assert auroc_covariance(scores, labels).hardest.tolist() == [0, 0]


def test_one_clear_order():
    verdict = verdict_of_trainings([0.8, 0.95, 0.9], np.eye(3) * 1e-4, 200)
    assert verdict.best.tolist() == [False, True, False]
    assert verdict.ranks.tolist() == [[3, 3], [1, 1], [2, 2]]


def test_holm_by_hand():
    # Sorted: .005 x 4 = .02, .011 x 3 = .033, .02 x 2 = .04, .03 x 1 = .03 raised to .04.
    assert holm([0.02, 0.005, 0.03, 0.011]).tolist() == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    assert holm([0.03]).tolist() == [0.03]


def test_holm_equals_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(6) ** 3
        adjusted = holm(values)
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for step, place in enumerate(np.argsort(values)):
                if values[place] > level / (6 - step):
                    break
                rejected.add(place)
            assert set(np.flatnonzero(adjusted <= level)) == rejected


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.01, math.nan, 0.03])
    assert adjusted[[0, 2]].tolist() == [0.02, 0.03]
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize("values", [[0.1, 1.2], [-0.1], [[0.1]]])
def test_holm_refuses_what_is_no_p_value(values):
    with pytest.raises(RequestError, match="from 0 to 1"):
        holm(values)


def test_two_trainings_by_hand():
    aurocs, covariance = np.array([0.9, 0.87]), np.array([[4e-4, 3e-4], [3e-4, 5e-4]])
    verdict = verdict_of_trainings(aurocs, covariance, 20)
    error = math.sqrt(4e-4 + 5e-4 - 6e-4)
    half = stats.t.ppf(0.975, 20) * error
    assert verdict.p[0, 1] == pytest.approx(2 * stats.t.sf(0.03 / error, 20))
    [rise, _], [_, fall] = (np.abs(ends - aurocs) for ends in (verdict.row_high, verdict.row_low))
    far = 0.03 + math.sqrt(rise**2 + fall**2 - 2 * 3 / math.sqrt(20) * rise * fall)
    assert far > 0.03 + half
    assert (verdict.low[0, 1], verdict.high[0, 1]) == pytest.approx((0.03 - half, far))
    assert (verdict.low[1, 0], verdict.high[1, 0]) == pytest.approx((-far, half - 0.03))
    assert verdict.best.all()


@pytest.mark.parametrize("truth", [(0.99, 0.97, 0.97), (0.995, 0.98)])
def test_simultaneous_intervals_hold_near_one(truth):
    # Intervals of the same width on both sides hold these in 0.87 of 600 studies.
    rng, labels = np.random.default_rng(0), np.r_[np.ones(40, int), np.zeros(760, int)]
    shifts, true_difference = math.sqrt(2) * stats.norm.ppf(truth), np.subtract.outer(truth, truth)
    held = []
    for _ in range(150):
        own = math.sqrt(0.35) * rng.normal(size=(len(truth), 800))
        scores = math.sqrt(0.65) * rng.normal(size=800) + own + shifts[:, None] * labels
        result = auroc_covariance(scores, labels)
        verdict = verdict_of_trainings(result.aurocs, result.covariance, result.degrees_of_freedom, share=result.share)
        inside = (verdict.low <= true_difference) & (true_difference <= verdict.high)
        held.append((inside | np.isnan(verdict.low))[~np.eye(len(truth), dtype=bool)].all())
    assert np.mean(held) >= 0.93  # 150 studies of 0.97 give less in one of 100


def naive_configurations(aurocs, covariance, nu1):
    """Variance and degrees of freedom of each pair, written out with loops over rows and seeds."""
    rows, seeds = aurocs.shape
    block = {
        (j, r, k, q): covariance[j * seeds + r, k * seeds + q]
        for j in range(rows)
        for r in range(seeds)
        for k in range(rows)
        for q in range(seeds)
    }
    own = [sum((a - aurocs[j].mean()) ** 2 for a in aurocs[j]) / (seeds - 1) for j in range(rows)]
    pooled = max(sum(own) / rows, math.sqrt(sum(s**2 for s in own) / rows * (seeds - 1) / (seeds + 1)))
    within = [np.mean([block[j, r, j, q] for r in range(seeds) for q in range(seeds) if r != q]) for j in range(rows)]
    found = {}
    for j in range(rows):
        for k in range(rows):
            if j != k:
                between = np.mean([block[j, r, k, q] for r in range(seeds) for q in range(seeds)])
                shared = max(0.0, within[j] + within[k] - 2 * between)
                of_seeds = (max(own[j], pooled) + max(own[k], pooled)) / seeds
                variance = of_seeds + shared
                freedom = variance**2 / (of_seeds**2 / (rows * (seeds - 1)) + shared**2 / nu1)
                found[j, k] = variance, freedom
    return found


@pytest.mark.parametrize(("rows", "wilder"), [(2, 1), (4, 1), (4, 6)])
def test_configurations_equal_the_formulas(rows, wilder):
    scores, labels, groups = simulated(rows * 3, 200, 25, decimals=3)
    result = auroc_covariance(scores, labels, groups)
    aurocs, pairs = result.aurocs.reshape(rows, 3), rows * (rows - 1) / 2
    aurocs[0] += (wilder - 1) * (aurocs[0] - aurocs[0].mean())
    verdict = verdict_of_configurations(aurocs, result.covariance, result.degrees_of_freedom)
    for (j, k), (variance, freedom) in naive_configurations(
        aurocs, result.covariance, result.degrees_of_freedom
    ).items():
        difference = aurocs[j].mean() - aurocs[k].mean()
        half = stats.t.ppf(1 - 0.025 / pairs, freedom) * math.sqrt(variance)
        assert verdict.degrees_of_freedom[j, k] == pytest.approx(freedom)
        near, far = (verdict.low, verdict.high) if difference > 0 else (verdict.high, verdict.low)
        assert near[j, k] == pytest.approx(difference - math.copysign(half, difference))
        assert abs(far[j, k]) >= abs(difference) + half - 1e-12


def test_equal_seeds_of_independent_rows_are_the_pooled_t_test():
    # Without noise from tiles, two configurations with one and the same spread are compared by Student's t test.
    aurocs = np.array([[0.90, 0.91, 0.92], [0.88, 0.89, 0.90]])
    verdict = verdict_of_configurations(aurocs, np.zeros((6, 6)), 100)
    assert verdict.p[0, 1] == pytest.approx(stats.ttest_ind(*aurocs).pvalue)
    assert verdict.degrees_of_freedom[0, 1] == pytest.approx(4)


def test_configurations_that_differ_in_nothing_have_the_freedom_of_the_tiles():
    verdict = verdict_of_configurations(np.full((2, 3), 0.9), np.zeros((6, 6)), 7.0)
    assert (verdict.degrees_of_freedom == 7).all()
    assert "no difference has a variance" in verdict.reason


def test_intervals_agree_with_holm():
    rng = np.random.default_rng(0)
    cut = 0
    for _ in range(200):
        verdict = verdict_of_trainings(0.9 + 0.03 * rng.normal(size=5), np.eye(5) * 1e-4, 30)
        off = ~np.eye(5, dtype=bool)
        claimed = (verdict.better | verdict.better.T)[off]
        outside = ((verdict.low > 0) | (verdict.high < 0))[off]
        at_zero = ((verdict.low == 0) | (verdict.high == 0))[off]
        assert (claimed == (outside | at_zero)).all()
        assert (claimed == (verdict.p[off] <= 0.05)).all()
        cut += at_zero.sum()
    assert cut > 0  # Holm's additional claims do occur


def test_ranks_and_the_set_of_the_best():
    verdict = verdict_of_trainings([0.95, 0.94, 0.90, 0.80], np.eye(4) * 1e-4, 500)
    assert verdict.best.tolist() == [True, True, False, False]
    assert verdict.ranks.tolist() == [[1, 2], [1, 2], [3, 3], [4, 4]]


def test_too_few_clusters_rank_three_rows_but_not_four():
    for rows, ranked in ((3, True), (4, False)):
        verdict = verdict_of_trainings(np.linspace(0.6, 0.99, rows), np.eye(rows) * 1e-6, 2.0)
        assert (verdict.reason == "") is ranked
        assert verdict.better.any() == ranked
    assert "3.0 effective clusters of the scarcer class cannot rank 4 rows" in verdict.reason
    assert verdict.best.all()
    assert verdict.ranks.tolist() == [[1, 4]] * 4
    assert verdict_of_trainings(np.linspace(0.6, 0.99, 4), np.eye(4) * 1e-9, 5.0).reason == ""
    assert verdict_of_trainings([0.9, 0.8], np.eye(2) * 1e-9, 0.5).reason == ""
    assert "can't be estimated from these tiles" in verdict_of_trainings([0.9, 0.8], np.eye(2) * 1e-9, 0.0).reason


def test_six_tiles_tell_nothing():
    # A paired DeLong test gave p = 0 here: the differences of the components are equal but for rounding.
    result = auroc_covariance([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]], [0, 1, 0, 1, 0, 1])
    verdict = verdict_of_trainings(result.aurocs, result.covariance, result.degrees_of_freedom)
    assert verdict.p.tolist() == [[1, 1], [1, 1]]
    assert np.isnan(verdict.low[0, 1])
    assert "no difference has a variance" in verdict.reason


def test_scores_in_one_order_do_not_differ():
    scores, labels, groups = simulated(1, 200, 12)
    result = auroc_covariance([scores[0], np.exp(scores[0]), -scores[0]], labels, groups)
    verdict = verdict_of_trainings(result.aurocs, result.covariance, result.degrees_of_freedom)
    assert verdict.difference[0, 1] == 0
    assert verdict.p[0, 1] == 1
    assert verdict.better[0, 2]


def test_no_p_value_is_zero():
    verdict = verdict_of_trainings([0.99, 0.5], np.eye(2) * 1e-12, 20_000)
    assert 0 < verdict.p[0, 1] < 1e-200


@pytest.mark.parametrize("seed", range(2))
def test_random_small_data_sets_neither_crash_nor_give_p_zero(seed):
    rng = np.random.default_rng(seed)
    for _ in range(400):
        tiles, rows = rng.integers(2, 15), rng.choice([2, 3, 4, 6])
        labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, tiles - 2)])
        scores = rng.integers(0, rng.integers(1, 6), (rows, tiles)).astype(float)
        slides = rng.integers(0, rng.integers(1, 5), tiles).astype(object)
        if rng.random() < 0.3:  # slides of one class
            slides = slides + 10 * labels
        if rng.random() < 0.2:
            slides[rng.integers(tiles)] = None
        groups = None if rng.random() < 0.4 else slides
        result = auroc_covariance(scores, labels, groups)
        verdicts = [verdict_of_trainings(result.aurocs, result.covariance, result.degrees_of_freedom)]
        if rows in (3, 6):
            verdicts.append(
                verdict_of_configurations(
                    result.aurocs.reshape(-1, 3), result.covariance, result.degrees_of_freedom, hardest=result.hardest
                )
            )
        for verdict in verdicts:
            assert ((verdict.p > 0) & (verdict.p <= 1)).all()
            assert verdict.best.any()
        for interval in metric_intervals(scores[0], labels, 0.5, groups).values():
            assert math.isnan(interval.low) or interval.high - interval.low > 1e-3


def old_verdict(aurocs, covariance):
    """The best against the rest with Holm and normal quantiles: whether it calls a row worse."""
    best = int(np.argmax(aurocs))
    others = np.delete(np.arange(len(aurocs)), best)
    own = np.diagonal(covariance)
    errors = np.sqrt(own[best] + own[others] - 2 * covariance[best, others])
    return (holm(2 * stats.norm.sf((aurocs[best] - aurocs[others]) / errors)) <= 0.05).any()


@pytest.mark.parametrize(("rows", "too_many"), [(10, 0.06), (27, 0.12)])
def test_equal_rows_are_seldom_told_apart(rows, too_many):
    rng = np.random.default_rng(1)
    labels, studies, new, old = np.repeat([0, 1], [180, 120]), 100, 0, 0
    for _ in range(studies):
        result = auroc_covariance(1.9 * labels + rng.normal(size=300) + 0.7 * rng.normal(size=(rows, 300)), labels)
        verdict = verdict_of_trainings(result.aurocs, result.covariance, result.degrees_of_freedom)
        new += verdict.better.any()
        old += old_verdict(result.aurocs, result.covariance)
    assert new / studies <= 0.05
    assert old / studies > too_many


def test_equal_configurations_of_unequal_spread_are_seldom_told_apart():
    rng = np.random.default_rng(0)
    spread = np.where(np.arange(27) % 2, 0.005, 0.015)[:, None]
    false = sum(
        verdict_of_configurations(0.9 + spread * rng.normal(size=(27, 3)), np.zeros((81, 81)), 100).better.any()
        for _ in range(200)
    )
    assert false / 200 <= 0.07  # 0.09 with the mean of the variances as the pooled one


def test_seeds_alone_do_not_make_a_configuration_better():
    # One noisy training each would be told apart by their tiles; three seeds show that seeds differ as much.
    rng = np.random.default_rng(0)
    aurocs = 0.9 + 0.02 * rng.normal(size=(2, 3))
    covariance = np.full((6, 6), 1e-5) + np.eye(6) * 1e-9
    assert not verdict_of_configurations(aurocs, covariance, 500).better.any()
    with pytest.raises(RequestError, match="at least 3 seeds, not 2"):
        verdict_of_configurations(aurocs[:, :2], covariance[:4, :4], 500)


def test_folds_are_averaged():
    parts = [auroc_covariance(*simulated(3, 90, 12, seed)) for seed in range(5)]
    whole = combine_folds(parts)
    assert whole.aurocs == pytest.approx(sum(part.aurocs for part in parts) / 5)
    assert whole.covariance == pytest.approx(sum(part.covariance for part in parts) / 25)
    least, most = (f(part.degrees_of_freedom for part in parts) for f in (min, max))
    assert least < whole.degrees_of_freedom <= 5 * most
    one_class = auroc_covariance([[0.1, 0.2, 0.3]] * 3, [0, 1, 0])
    assert "one positive tile" in combine_folds([*parts, one_class]).lack
    with pytest.raises(RequestError, match="different numbers of rows"):
        combine_folds([parts[0], auroc_covariance(*simulated(2, 90, 12))])
    with pytest.raises(RequestError, match="no folds"):
        combine_folds([])


def test_two_folds_by_hand():
    def fold(auroc, variance, hardest, n_eff, share):
        return AurocCovariance(np.array([auroc]), np.array([[variance]]), n_eff - 1, n_eff, np.array([hardest]), share)

    whole = combine_folds([fold(0.9, 4e-4, 0.02, 5.0, 0.1), fold(0.8, 2e-4, 0.05, 10.0, 0.3)])
    assert (whole.aurocs[0], whole.covariance[0, 0], whole.hardest[0]) == pytest.approx((0.85, 1.5e-4, 0.025))
    assert whole.share == pytest.approx(0.1)
    # Variances as 1/5 and 1/10: Satterthwaite's (1/5 + 1/10)^2 / ((1/5)^2 / 4 + (1/10)^2 / 9).
    assert whole.degrees_of_freedom == pytest.approx(8.1)
    assert whole.n_eff == pytest.approx(9.1)
    lacking = combine_folds([fold(0.9, 4e-4, 0.02, 5.0, 0.1), replace(fold(0.8, math.nan, 0, 1.0, 1.0), lack="why")])
    assert (lacking.degrees_of_freedom, lacking.n_eff, lacking.lack) == (0.0, 1.0, "why")


def test_intervals_of_configurations_by_hand():
    # Variances between seeds of 4e-4 and 1e-4; pooled it is their mean, which counts for the second row.
    aurocs, within = np.array([[0.88, 0.90, 0.92], [0.79, 0.80, 0.81]]), 2e-4
    matrix = np.kron(np.eye(2), np.full((3, 3), within))
    hardest = np.array([0.01, 0.02, 0.03, 0.0, 0.0, 0.0])
    verdict = verdict_of_configurations(aurocs, matrix, 30, hardest=hardest, share=0.001)
    pooled = max(2.5e-4, math.sqrt(17e-8 / 2 * 2 / 4))
    spread = np.maximum([4e-4, 1e-4], pooled)
    variance = spread / 3 + within
    freedom = variance**2 / ((pooled**2 / 2 + (spread - pooled) ** 2) / 2 / 9 + within**2 / 30)
    low, high = auroc_ends(np.array([0.9, 0.8]), variance, freedom, np.array([0.02, 0.0]), 0.001)
    assert (verdict.row_low, verdict.row_high) == (pytest.approx(low), pytest.approx(high))


def test_lack_is_passed_on():
    result = auroc_covariance([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]], [0, 1, 0])
    assert "one positive tile" in result.lack
    verdict = verdict_of_trainings(result.aurocs, result.covariance, result.degrees_of_freedom)
    assert "can't be estimated" in verdict.reason
    assert verdict.best.all()


def test_memory_does_not_grow_with_rows_times_clusters_squared():
    scores, labels, _ = simulated(27, 20_000)
    tracemalloc.start()
    auroc_covariance(scores, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * scores.nbytes


def test_bad_input_is_named():
    with pytest.raises(RequestError, match="shape"):
        auroc_covariance([[0.1, 0.2]], [0, 1, 1])
    with pytest.raises(HistolightError, match="NaN or infinite"):
        auroc_covariance([[0.1, 0.2], [0.1, math.nan]], [0, 1])
    with pytest.raises(RequestError, match="as many rows and columns"):
        verdict_of_trainings([0.9, 0.8], np.eye(3), 10)
    with pytest.raises(RequestError, match="as many rows and columns"):
        verdict_of_configurations(np.full((2, 3), 0.9), np.eye(3), 10)


def test_planned_power_is_the_power_of_the_test():
    rng = np.random.default_rng(0)
    plan = Plan(2, 3, 1e-4, 5e-5, 200)
    stated = 0
    for _ in range(500):
        tile = math.sqrt(2.5e-5) * rng.normal(size=(2, 1))
        aurocs = np.array([[0.93], [0.9]]) + tile + 0.01 * rng.normal(size=(2, 3))
        stated += verdict_of_configurations(aurocs, np.kron(np.eye(2), np.full((3, 3), 2.5e-5)), 200).better[0, 1]
    assert power(plan, 0.03) == pytest.approx(stated / 500, abs=0.08)


def test_what_is_needed_reaches_the_power():
    plan = Plan(10, 1, 0.0, 2e-4, 100)
    multiple = tiles_needed(plan, 0.03)
    assert 1 < multiple < 10
    assert power(Plan(10, 1, 0.0, 2e-4 / multiple, 101 * multiple - 1), 0.03) >= 0.8
    seeds = seeds_needed(Plan(3, 3, 3e-4, 1e-6, 100), 0.03)
    assert (
        power(Plan(3, int(seeds), 3e-4, 1e-6, 100), 0.03) >= 0.8 > power(Plan(3, int(seeds) - 1, 3e-4, 1e-6, 100), 0.03)
    )
    assert math.isinf(tiles_needed(Plan(3, 3, 1e-2, 1e-6, 100), 0.01))
    assert math.isinf(seeds_needed(Plan(3, 3, 1e-4, 1e-2, 100), 0.01))


def test_a_plan_reads_the_components_of_an_earlier_comparison():
    rng = np.random.default_rng(0)
    aurocs = 0.9 + 0.01 * rng.normal(size=(50, 4))
    plan = plan_like(aurocs, np.kron(np.eye(50), np.full((4, 4), 2e-4)), 60)
    assert (plan.rows, plan.seeds, plan.degrees_of_freedom) == (50, 4, 60)
    assert plan.tile_variance == pytest.approx(4e-4)
    assert plan.seed_variance == pytest.approx(1e-4, rel=0.2)
