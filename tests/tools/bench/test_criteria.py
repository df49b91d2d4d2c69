"""The comparison of criteria runs its cells once, resumes, and publishes table and picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from onnxcomp.compiler.spec import Pipeline
from onnxcomp.passes.prune_filters import PruneFilters
from tools.bench import criteria as module
from tools.bench.cases import Network
from tools.bench.criteria import (
    CRITERIA,
    NETS,
    QUICK,
    REPAIRS,
    Cell,
    CellResult,
    Comparison,
    main,
    measure,
    panels,
    pipeline,
    renewed,
    section,
)
from tools.bench.criteria_picture import COLOURS, MARKERS, draw, spread_apart

(NAME,) = QUICK
CELL = Cell("net", "apoz", 0.5, "with repair", 64)


def outcome(
    criterion: str, macs: float, accuracy: float, repair: str = "with repair", **more: Any
) -> CellResult:
    cell = Cell("net", criterion, macs, repair, 64)
    given = {"accuracy_before": 99.0, "macs_share": macs - 0.001, "images": 3000, "seconds": 1.0, **more}
    return CellResult(cell, pipeline(cell), accuracy=accuracy, **given)


FEW = [
    outcome("obs", 0.5, 80.0),
    outcome("obs", 0.8, 90.0),
    outcome(
        "apoz", 0.8, 91.0, notes=("criterion=apoz: l2 norms of filters decide for a: no activation follows",)
    ),
    outcome("obs", 0.8, 70.0, "without repair"),
]


# --- cells -----------------------------------------------------------------------------------------------------------
def test_every_criterion_of_the_pass_is_compared_and_has_its_colour_and_mark() -> None:
    assert sorted(get_args(get_type_hints(PruneFilters)["criterion"])) == sorted(CRITERIA)
    assert set(CRITERIA) == set(COLOURS) == set(MARKERS)
    assert len(set(COLOURS.values())) == len(set(MARKERS.values())) == len(CRITERIA)


def test_a_cell_is_a_pipeline_that_spells_out_its_scope() -> None:
    assert pipeline(CELL).endswith(
        "prune-filters{macs=0.5 scope=uniform criterion=apoz repair=sequential joint=0}"
    )
    assert pipeline(replace(CELL, repair="without repair")).endswith("criterion=apoz repair=none}")
    Pipeline.parse(pipeline(CELL))


def test_cells_without_repair_come_first_and_none_twice() -> None:
    cells = [cell for _, cell in Comparison(NETS).cells()]
    assert len(set(cells)) == len(cells) == len(NETS) * len(CRITERIA) * 4 * len(REPAIRS)
    kinds = [cell.repair for cell in cells]
    assert kinds == sorted(kinds, reverse=True)


def test_a_cell_runs_as_users_run_it() -> None:
    cell = Cell(NAME, "hrank", 0.6, "without repair", 16)
    found = measure(QUICK[NAME], cell, Path(), threads=1)
    assert found.cell == cell
    assert 0.59 <= found.macs_share <= 0.6
    assert found.accuracy_before > 98 > found.accuracy > 0
    assert (found.images, found.notes) == (450, ())


def test_a_budget_beyond_reach_is_a_point_where_it_ended() -> None:
    found = measure(QUICK[NAME], Cell(NAME, "l1", 0.0001, "without repair", 16), Path(), threads=1)
    assert 0.0001 < found.macs_share < 0.01


# --- the page --------------------------------------------------------------------------------------------------------
def test_tables_name_the_best_of_a_column_and_what_was_not_run() -> None:
    text = section(FEW)
    assert "| net, with repair | 80% of MACs | 50% of MACs |\n| --- | ---: | ---: |\n" in text
    assert "| `obs` | 90.00 | **80.00** |\n| `apoz` | **91.00** | - |\n" in text
    assert (
        "| `obs` | **70.00** | - |\n\nThe network as given: 99.00 %. A dash is a cell that has not been run.\n"
        in text
    )
    assert "A dash" not in section(FEW[:2])
    assert "on all 3,000 evaluation images" in text and "64 calibration images" in text
    assert "- net: criterion=apoz: l2 norms of filters decide for a: no activation follows." in text


def test_a_section_is_put_into_its_place_and_the_rest_of_the_page_stays() -> None:
    first = renewed("", section(FEW))
    assert first.startswith("# Results\n\n<!-- criteria -->\n")
    assert first.endswith("<!-- end criteria -->\n")
    around = f"# Results\n\nBefore.\n\n{section(FEW[:1])}\nAfter.\n"
    page = renewed(around, section(FEW))
    assert page == around.replace(section(FEW[:1]), section(FEW))
    assert renewed(page, section(FEW)) == page
    assert renewed("# Results\n\nBefore.\n", section(FEW)) == f"# Results\n\nBefore.\n\n{section(FEW)}"


def test_panels_hold_the_curves_of_one_net_and_one_kind_of_repair() -> None:
    found = panels(FEW)
    assert [panel.title for panel in found] == ["net, with repair", "net, without repair"]
    assert [curve.criterion for curve in found[0].curves] == ["obs", "apoz"]
    assert found[0].curves[0].points == ((0.499, 80.0), (0.799, 90.0))


# --- the picture -----------------------------------------------------------------------------------------------------
def test_labels_keep_their_order_and_their_distance_and_move_no_further_than_needed() -> None:
    assert spread_apart([5.0, 1.0, 9.0], 1.0) == [5, 1, 9]
    assert spread_apart([1.0, 1.0], 1.0) == [0.5, 1.5]
    assert spread_apart([4.0, 0.0, 4.5, 4.2], 1.0) == pytest.approx([3.2333, 0, 5.2333, 4.2333], abs=1e-4)
    close = spread_apart([0.0, 0.1, 0.9, 1.8], 1.0)
    assert close == pytest.approx([-0.8, 0.2, 1.2, 2.2])
    assert spread_apart([], 1.0) == []


def test_a_picture_is_the_same_bytes_for_the_same_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("first.png", "second.png"):
        draw(panels(FEW), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.png", "second.png"))
    assert first.startswith(b"\x89PNG") and first == second
    draw(panels(FEW[:2]), tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != first


# --- the command line ------------------------------------------------------------------------------------------------
def test_what_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    ran: list[Cell] = []

    def fake(net: Network, cell: Cell, shared: Path, threads: int) -> CellResult:
        ran.append(cell)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return replace(FEW[2], cell=cell)

    monkeypatch.setattr(module, "measure", fake)
    words = ["--quick", "--rows", "l1,apoz", "--shares", "0.5", "--folder", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert len(json.loads((tmp_path / "criteria.json").read_text())["cells"]) == 2
    assert main(words) == 0
    assert len(ran) == 5 and len(set(ran)) == 4
    assert (tmp_path / "criteria.png").exists()
    page = (tmp_path / "results.md").read_text()
    assert main([*words, "--draw-only"]) == 0
    assert main(words) == 0
    assert len(ran) == 5
    assert (tmp_path / "results.md").read_text() == page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "l1,apozz"], "there is no row 'apozz'; rows are obs, "),
        (["--shares", "0.5,50"], "'0.5,50' are not shares between 0 and 1"),
        (["--shared", "nowhere"], "does not exist; say with --shared where models/ and data/ are"),
        (["--quick", "--draw-only", "--folder", "{tmp}"], "holds nothing to draw; leave --draw-only out"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([word.replace("{tmp}", str(tmp_path)) for word in words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
