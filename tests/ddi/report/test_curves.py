"""`ddi report`: tables of rows with values counted by hand, curves, and sources that are none."""

import json

import pytest

from ddi.cli import main
from ddi.report.comparison import compare, curve, format_comparison, macs_needed, points_of, read_results
from ddi.report.curves import draw_report, plot_comparison, plot_history

HEADER = {"header": True, "system": {}}


def row(gating, target, seed, accuracy, macs, **more):
    ratio = 40e6 / macs
    values = dict(network="net", gating=gating, target=target, seed=seed, accuracy=accuracy, macs=macs)
    return values | {"mac_ratio": ratio, "ms_b1": None, "ms_b32": None} | more


ROWS = [
    row("backbone", 1.0, 0, 0.90, 40e6),
    row("dense", 1.0, 0, 0.94, 40e6, ms_b1=0.4),
    row("both", 0.5, 0, 0.93, 20e6, ms_b1=0.2, ms_b32=0.1),
    row("both", 0.25, 0, 0.90, 10e6),
    row("layer", 0.5, 0, 0.88, 20e6),
    row("dense", 1.0, 1, 0.96, 40e6, ms_b1=0.6),
    row("both", 0.5, 1, 0.95, 20e6, ms_b1=0.3),
    row("layer", 0.5, 2, 0.91, 20e6),  # no dense network of its seed
]


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in [HEADER, *rows]))
    return path


def line(epoch, stage="joint", **more):
    values = dict(stage=stage, epoch=epoch, loss=2.0 / epoch, task_loss=1.0, mac_share=0.5, mac_ratio=2.0)
    return values | {"validation_accuracy": 0.5} | more


def run_folder(folder, lines):
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def test_points():
    backbone, dense, layer, half, quarter = points_of(ROWS)
    assert (half.gating, half.target, half.seeds) == ("both", 0.5, 2)
    assert (half.accuracy, half.low, half.high) == (pytest.approx(0.94), 0.93, 0.95)
    assert (half.macs, half.mac_ratio) == (20e6, 2.0)
    assert half.ms_b1 == pytest.approx(0.25) and half.ms_b32 == 0.1
    assert half.to_dense == pytest.approx(-0.01)
    assert quarter.seeds == 1 and quarter.ms_b1 is None and quarter.to_dense == pytest.approx(-0.04)
    assert dense.accuracy == pytest.approx(0.95) and dense.to_dense == 0
    assert layer.accuracy == pytest.approx(0.895)
    assert layer.to_dense == pytest.approx(-0.06)  # of seed 0 alone
    assert backbone.gating == "backbone"


@pytest.mark.parametrize(
    ("accuracy", "needed"),
    [
        (0.92, 15e6),  # half-way from 0.90 at 10 to 0.94 at 20
        (0.945, 30e6),  # half-way from there to dense, 0.95 at 40
        (0.90, 10e6),
        (0.50, 10e6),  # nothing is known of cheaper ones
        (0.95, 40e6),
        (0.951, None),
    ],
)
def test_macs_needed(accuracy, needed):
    line = curve(points_of(ROWS), "net", "both")
    assert [point.macs for point in line] == [10e6, 20e6, 40e6]
    assert macs_needed(line, accuracy) == (None if needed is None else pytest.approx(needed))


def test_macs_needed_of_a_curve_that_falls_in_between_and_of_none():
    falls = [row("both", 0.25, 0, 0.8, 10e6), row("both", 0.5, 0, 0.7, 20e6), row("dense", 1, 0, 0.9, 40e6)]
    line = curve(points_of(falls), "net", "both")
    assert macs_needed(line, 0.75) == 10e6
    assert macs_needed(line, 0.85) == pytest.approx(35e6)  # three quarters from 20 to 40
    assert macs_needed([], 0.5) is None


def test_the_same_accuracy_for_fewer_computations():
    found = {(one["gating"], one["target"], one["by"]): one for one in compare(points_of(ROWS))}
    # layer: 0.895 at 20. both has more than that at its cheapest.
    layer = found["layer", 0.5, "both"]
    assert (layer["needed"], layer["fewer"], layer["at_most"]) == (10e6, 2.0, True)
    # both: 0.90 at 10. layer: 0.895 at 20 to 0.95 at 40, so 20 + 20 * 5 / 55.
    quarter = found["both", 0.25, "layer"]
    assert quarter["needed"] == pytest.approx(20e6 + 20e6 * 5 / 55) and not quarter["at_most"]
    assert quarter["fewer"] == pytest.approx(10e6 / (20e6 + 20e6 * 5 / 55))
    assert found["dense", 1.0, "both"]["needed"] == pytest.approx(40e6)
    assert not any(gating == "backbone" or by == gating for gating, _, by in found)
    alone = compare(points_of([one for one in ROWS if one["gating"] != "dense"]))
    missed = next(one for one in alone if (one["target"], one["by"]) == (0.5, "layer"))
    assert missed["needed"] is None and missed["fewer"] is None


def test_the_command_prints_the_tables_and_draws(tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", [*ROWS, row("layer", 0.5, 0, 0.5, 1e6) | {"network": "other"}])
    run = run_folder(tmp_path / "a/run", [line(1, "backbone"), line(1, exit_accuracy=[0.1, 0.2]), line(2)])
    again = run_folder(tmp_path / "b/run", [line(1)])
    out, target = tmp_path / "out", tmp_path / "report.json"
    arguments = [str(one) for one in (run, rows, again)]
    assert main(["report", *arguments, "--out", str(out), "--json", str(target)]) == 0
    text = capsys.readouterr().out
    assert expected(rows) in text and "Wrote 4 figures" in text
    assert "other" in text and "MMACs needed" not in text.partition("other")[2]  # nothing to compare with
    found = json.loads(target.read_text())
    names = ["run.png", "rows_net.png", "rows_other.png", "run_2.png"]
    assert found["figures"] == [str(out / name) for name in names]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in names)
    (comparison,) = found["comparisons"]
    assert comparison["source"] == str(rows) and len(comparison["points"]) == 6
    assert len(comparison["needed"]) == 5


def expected(rows):
    return f"""{rows}: net
gating    target  seeds          accuracy, %  to dense  MMACs  mac_ratio  ms, b1  ms, b32
backbone       1      1  90.00 (90.00-90.00)     -4.00  40.00       1.00       -        -
dense          1      2  95.00 (94.00-96.00)         -  40.00       1.00   0.500        -
layer        0.5      2  89.50 (88.00-91.00)     -6.00  20.00       2.00       -        -
both         0.5      2  94.00 (93.00-95.00)     -1.00  20.00       2.00   0.250    0.100
both        0.25      1  90.00 (90.00-90.00)     -4.00  10.00       4.00       -        -

MMACs needed for the accuracy of  MMACs                layer                    both
dense 1, 95.00 %                  40.00  40.00 (1.00x fewer)     40.00 (1.00x fewer)
layer 0.5, 89.50 %                20.00                    .  <= 10.00 (2.00x fewer)
both 0.5, 94.00 %                 20.00   36.36 (1.82x more)                       .
both 0.25, 90.00 %                10.00   21.82 (2.18x more)                       ."""


def test_curves_show_what_the_points_are():
    axes = plot_comparison(points_of(ROWS), "net").axes
    assert [one.get_xlabel().split(",")[0] for one in axes] == [
        "MMACs per image",
        "ms per image",
        "ms per image",
    ]
    macs, ms, _ = ({c.get_label(): c.lines[0].get_xydata().tolist() for c in one.containers} for one in axes)
    assert macs["both"] == [pytest.approx(xy) for xy in ([10, 90], [20, 94], [40, 95])]
    assert macs["layer"] == [pytest.approx(xy) for xy in ([20, 89.5], [40, 95])]
    assert ms["both"] == [pytest.approx(xy) for xy in ([0.25, 94], [0.5, 95])]
    assert ms["dense"] == [pytest.approx([0.5, 95])] and set(macs) == {"both", "layer", "dense"}
    unmeasured = [one | {"ms_b1": None, "ms_b32": None} for one in ROWS]
    assert len(plot_comparison(points_of(unmeasured), "net").axes) == 1


def test_a_history_is_drawn_with_its_stages():
    history = [line(1, "backbone"), line(1), line(2, mac_share=0.25, mac_ratio=4.0)]
    loss, accuracy, share = plot_history(history, "a run").axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2], [2, 2], [3, 1]]
    assert accuracy.lines[0].get_ydata().tolist() == [50, 50, 50]
    assert [one.get_ydata().tolist() for one in share.lines[:2]] == [[0.5, 0.5, 0.25], [0.5, 0.5, 0.25]]
    assert [(one.get_text(), one.get_position()[0]) for one in loss.texts] == [
        ("backbone", 0.55),
        ("joint", 1.55),
    ]


def test_equal_accuracies_whose_mean_rounds_have_a_spread_of_zero():
    rows = [row("both", 0.5, seed, 0.9282, 20e6) for seed in range(6)]
    assert plot_comparison(points_of(rows), "net").axes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"network": ', "is damaged, line 2"),
        (json.dumps({n: v for n, v in ROWS[1].items() if n != "seed"}), "line 2 has no 'seed'"),
        (json.dumps({n: v for n, v in ROWS[1].items() if n != "macs"}), "row 1 has no number for macs"),
        (json.dumps(ROWS[1] | {"accuracy": None}), "row 1 has no number for accuracy"),
        (json.dumps(ROWS[1] | {"gating": "depth"}), "gating 'depth'; allowed: backbone, dense"),
        ("", "has no rows; `ddi grid` adds"),
    ],
)
def test_rows_that_cannot_be_compared(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + text)
    with pytest.raises(ValueError, match=message):
        draw_report([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_times_may_be_missing_as_a_column(tmp_path):
    rows = [{n: v for n, v in one.items() if not n.startswith("ms_")} for one in ROWS]
    points = points_of(read_results(write(tmp_path / "rows.jsonl", rows)))
    assert {point.ms_b1 for point in points} == {None}


def test_folders_and_files_that_are_none(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "begun", [])
    for name, message in {
        "empty": "has no history.jsonl",
        "begun": "no epoch of this run has ended yet",
        "nothing": "no such folder or file",
    }.items():
        assert main(["report", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib_names_the_extra(tmp_path, capsys, no_matplotlib):
    assert main(["report", str(run_folder(tmp_path / "run", [line(1)])), "--out", str(tmp_path / "out")]) == 2
    assert "pip install ddi-kernels[report]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_networks_that_halt_early_have_a_curve_of_their_own():
    def halting(*points):
        return [dict(confidence=c, accuracy=a, macs=m, ms_b1=ms, ms_b32=2 * ms) for c, a, m, ms in points]

    half = halting((0.8, 0.90, 12e6, 0.1), (0.9, 0.93, 15e6, 0.15))
    quarter = halting((0.8, 0.85, 5e6, 0.05), (0.9, 0.89, 14e6, 0.06))
    rows = [
        row("dense", 1.0, 0, 0.96, 40e6),
        row("both", 0.5, 0, 0.94, 20e6, halting=half),
        row("both", 0.25, 0, 0.91, 16e6, halting=quarter),
        row("both", 0.5, 1, 0.92, 20e6, halting=halting((0.8, 0.88, 8e6, 0.3))),
    ]
    points = points_of(rows)
    shown = [(p.gating, p.target, p.confidence, p.seeds) for p in points]
    assert shown[1:3] == [("both", 0.5, None, 2), ("both", 0.25, None, 1)]
    assert [one[1:] for one in shown[3:]] == [(0.5, 0.9, 1), (0.5, 0.8, 2), (0.25, 0.9, 1), (0.25, 0.8, 1)]
    mean = points[4]
    assert (mean.accuracy, mean.macs, mean.mac_ratio) == pytest.approx((0.89, 10e6, (40 / 12 + 40 / 8) / 2))
    assert mean.ms_b1 == pytest.approx(0.2) and mean.ms_b32 == pytest.approx(0.4)
    line = curve(points, "net", "both, halting")
    assert [p.macs for p in line] == [5e6, 10e6, 15e6, 40e6]  # 0.89 at 14 is no more than at 10
    (needed,) = [one for one in compare(points) if one["target"] == 0.25 and "halting" in one["by"]]
    assert needed["needed"] == pytest.approx(12.5e6)  # 0.91, half-way from 0.89 to 0.93
    text = format_comparison("rows", points)
    assert "both, halting   0.5 at 0.8" in text and "16.00                    .  12.50 (1.28x fewer)" in text
    (drawn,) = [c for c in plot_comparison(points, "net").axes[1].containers if "halting" in c.get_label()]
    assert drawn.lines[0].get_xdata().tolist() == pytest.approx([0.05, 0.2, 0.15])


def test_a_gating_held_to_another_resource_has_a_curve_of_its_own():
    rows = [row("dense", 1.0, 0, 0.9, 40e6), row("both", 0.5, 0, 0.8, 20e6)]
    points = points_of([*rows, row("both", 0.5, 0, 0.85, 22e6, resource="ms")])
    assert [p.gating for p in points] == ["dense", "both", "both, ms"]
    assert [round(p.accuracy, 2) for p in curve(points, points[0].network, "both, ms")] == [0.85, 0.9]
    assert "both, ms" in format_comparison("rows", points)
