"""The page of an experiment: the rule of its conclusion, and what it says of synthetic cells."""

from collections.abc import Iterable
from functools import partial

import pytest

from titan_motif.experiments.cells import Cell
from titan_motif.experiments.measures import Comparison, Measure, compare, rows_by_arm, summarize
from titan_motif.experiments.page import Page, Picture, render, write_page
from titan_motif.experiments.pictures import draw_accuracy, draw_layers, draw_validation
from titan_motif.study.results import Results

ENVIRONMENT = {
    "versions": {"python": "3.12", "torch": "2.11.0", "triton": None},
    "device_name": "a chip",
    "world_size": 1,
    "git_commit": "0123456789abcdef",
    "git_has_changes": False,
}
LOSS = Measure("text loss", lambda row: row["validation_losses"]["text"], is_better_lower=True)
SHARE = Measure(
    "hops, 1", lambda row: row["accuracy"]["hops"]["1"] / 100, is_better_lower=False, num_asked=100
)
ARMS = ("old", "new")
PLANNED = [Cell(arm, seed) for seed in range(3) for arm in ARMS]


def row(loss: float, num_right: int, *, has_layers: bool = True) -> dict:
    """Return a finished cell's row."""
    curve = {"step": [1, 5, 10], "layer_0": [0.1, 0.2, 0.3], "layer_1": [0.2, 0.3, 0.4]}
    return {
        "validation_losses": {"text": loss},
        "validation_curve": {"step": [5, 10], "validation_loss/text": [loss + 1, loss]},
        "accuracy": {"hops": {"1": num_right}},
        "by_layer": {"lambda": curve} if has_layers else {},
        "step": 10,
        "tokens_seen": 1000,
        "training_seconds": 12.0,
        "tokens_per_second": 5000.0,
        "environment": ENVIRONMENT,
    }


def frame() -> Page:
    """Return a page of two measures and three pictures."""
    return Page(
        name="toy",
        title="Old against new",
        question="Which?",
        setup="Two arms.",
        arms=(*ARMS, "other"),
        compared=(ARMS,),
        measures=(LOSS, SHARE),
        pictures=(
            Picture("losses", "Losses.", partial(draw_validation, groups=("text",))),
            Picture(
                "accuracy", "Right.", partial(draw_accuracy, tasks={"hops": ("hops", {1: SHARE})})
            ),
            Picture("layers", "Lambda.", partial(draw_layers, curves={"lambda": "lambda"})),
        ),
        command="titan-motif experiment toy --resume",
    )


def results(rows: dict, path=None) -> Results:
    return Results(path, {}, ENVIRONMENT, rows)


def compare_losses(old: list[float], new: list[float]) -> Comparison:
    losses = {"old": old, "new": new}
    return compare(LOSS, {arm: with_seeds(row(x, 50) for x in losses[arm]) for arm in ARMS}, ARMS)


def with_seeds(rows: Iterable[dict]) -> list[dict]:
    return [found | {"seed": seed} for seed, found in enumerate(rows)]


def test_a_difference_counts_beyond_two_spreads():
    """Both arms' deviation is 0.1, and so is the spread."""
    old = [1.9, 2.0, 2.1]
    assert compare_losses(old, [x - 0.19 for x in old]).verdict == "none"
    assert compare_losses(old, [x - 0.21 for x in old]).verdict == "new"
    found = compare_losses(old, [x + 0.21 for x in old])
    assert found.verdict == "old"
    assert found.difference == pytest.approx(0.21)
    assert found.spread == pytest.approx(0.1)


def test_the_spread_is_the_root_mean_square_of_both():
    """Deviations 0 and 0.1: 0.0707; a difference of 0.15 is more than twice of it."""
    assert compare_losses([2.0] * 3, [1.75, 1.85, 1.95]).spread == pytest.approx(0.005**0.5)
    assert compare_losses([2.0] * 3, [1.75, 1.85, 1.95]).verdict == "new"
    assert compare_losses([2.0] * 3, [1.77, 1.87, 1.97]).verdict == "none"


def test_fewer_than_three_seeds_conclude_nothing():
    found = compare_losses([2.0, 2.0, 2.0], [1.0, 1.0])
    assert found == Comparison(-1.0, None, "not yet", (-1.0, -1.0))
    assert compare_losses([2.0], []) == Comparison(None, None, "not yet")


def test_an_accuracy_has_at_least_its_questions_spread():
    """Of 100 questions at 50%: 5%, however near to each other the seeds are."""
    rows = {"old": with_seeds([row(1, 50)] * 3), "new": with_seeds([row(1, 59)] * 3)}
    found = compare(SHARE, rows, ARMS)
    assert (found.spread, found.verdict) == (pytest.approx(0.05), "none")
    rows["new"] = with_seeds([row(1, 61)] * 3)
    assert compare(SHARE, rows, ARMS).verdict == "new"


def test_summaries_are_of_finished_cells_alone():
    rows = {"old:10": row(3.0, 1), "old:2": row(1.0, 1), "old:3": {"error": "?"}, "gone:0": {}}
    found = rows_by_arm(rows, ARMS)
    assert [x["validation_losses"]["text"] for x in found["old"]] == [1.0, 3.0]
    assert [x["seed"] for x in found["old"]] == [2, 10]
    mean, deviation, num = summarize(LOSS, found["old"])
    assert (mean, deviation, num) == (2.0, pytest.approx(2**0.5), 2)
    assert summarize(LOSS, found["new"]) is None


def test_page_names_what_is_missing_and_tells_one_seed(tmp_path):
    rows = {
        "old:0": row(2.0, 50, has_layers=False),
        "new:0": row(1.5, 90),
        "old:1": row(2.2, 54, has_layers=False),
        "new:1": {"error": "out of memory"},
    }
    file = write_page(frame(), results(rows), PLANNED, tmp_path, is_quick=False)
    text = file.read_text()
    assert file == tmp_path / "toy.md"
    assert "Missing cells (arm:seed), 2 of 6: old:2, new:2." in text
    assert "new:1 failed: out of memory." in text
    assert "|  | old (2 seeds) | new (one seed) | other (no seed) |" in text
    assert "| text loss | 2.1000 +- 0.1414 | 1.5000 | - |" in text
    assert "| hops, 1 | 52.0 +- 2.8 (5.0) | 90.0 (3.0) | - |" in text
    assert "new against old: not yet; there are too few seeds." in text
    assert "| text loss | -0.6000 | - | not yet | -0.5000 |" in text
    assert "1 x a chip (3 cells)" in text
    assert "commit 0123456789." in text
    for name in ("losses", "accuracy", "layers"):
        assert f"(toy/{name}.png)" in text
        assert (tmp_path / "toy" / f"{name}.png").stat().st_size > 5000


def test_page_of_all_cells_concludes():
    rows = {f"old:{seed}": row(2.0 + seed / 100, 50) for seed in range(3)}
    rows |= {f"new:{seed}": row(1.5 + 2 * seed / 100, 50) for seed in range(3)}
    text = render(frame(), results(rows), PLANNED, [], is_quick=False)
    assert "Missing" not in text
    assert "of 2 measures, new is better in 1, old is better in 0, no difference is" in text
    assert "beyond the spread in 1." in text
    assert "| text loss | -0.4900 | 0.0158 | new | -0.5000, -0.4900, -0.4800 |" in text
    assert "| hops, 1 | +0.0 | 5.0 | none | +0.0, +0.0, +0.0 |" in text
    assert "no result" not in text


def test_page_concludes_for_each_pair_and_tells_more():
    rows = {f"old:{seed}": row(2.0 + seed / 100, 50) for seed in range(3)}
    rows |= {f"new:{seed}": row(1.5 + seed / 100, 50) for seed in range(3)}
    page = frame()._replace(
        compared=(ARMS, ("other", "new")),
        tell_more=lambda rows: [f"{len(rows['new'])} are new."],
        conclude=lambda rows: [f"{len(rows['old'])} are old."],
    )
    text = render(page, results(rows), PLANNED, [], is_quick=False)
    assert "|  | new less old | spread | better | in each seed |" in text
    assert "## Conclusion\n\n3 are old.\n\n" in text
    assert "new against other: not yet; there are too few seeds." in text
    assert text.count("Rule:") == 1
    assert text.index("3 are new.") < text.index("## Conclusion")


def test_page_names_the_arms_that_it_draws_no_conclusion_of():
    rows = {f"{arm}:{seed}": row(2.0, 50) for arm in ARMS for seed in range(3)}
    text = render(frame(), results(rows | {"other:0": row(1.0, 90)}), PLANNED, [], is_quick=False)
    told = "Compared with nobody, of fewer than 3 seeds: other."
    assert text.index("| hops, 1 | +0.0") < text.index(told) < text.index("Rule:")
    assert "Compared with nobody" not in render(frame(), results(rows), PLANNED, [], is_quick=False)


def test_page_before_any_cell_has_no_pictures(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "losses.png").write_text("of an earlier call")
    text = write_page(frame(), results({}), PLANNED, tmp_path, is_quick=False).read_text()
    assert "Missing cells (arm:seed), 6 of 6" in text
    assert "None is finished." in text
    assert "png" not in text
    assert not list((tmp_path / "toy").glob("*.png"))


def test_quick_page_says_that_it_is_no_result():
    rows = {f"{arm}:{seed}": row(2.0, 50) for arm in ARMS for seed in range(3)}
    text = render(frame(), results(rows), PLANNED, [], is_quick=True)
    assert "nothing here is a result" in text
    assert "## Conclusion\n\nNone: --quick." in text
