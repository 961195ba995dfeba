"""What is quantized and why: on graphs and tables small enough to work out by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from edge.preprocess import InputSpec
from tools.errors import ToolError
from tools.latency_table import Row, Table, read_table
from tools.layers import ADD, CONV, DEPTHWISE, Layer, Shape
from tools.network import ConvNorm
from tools.paddle_model import save_layer
from tools.plan import (
    MOST_TOGETHER,
    TABLES,
    Costs,
    _descend,
    best_of,
    check_fits,
    estimate,
    main,
    make_plan,
    read_plan,
    write_plan,
)

ONE = Shape(CONV, 1, 1, 64, 64, 40, 40)
LOOK = Shape(DEPTHWISE, 5, 1, 64, 64, 40, 40)
SUM = Shape(ADD, 1, 1, 64, 64, 40, 40)


def table(*rows: Row) -> Table:
    return Table("ms", "test", rows)


def chain(*shapes: Shape) -> list[Layer]:
    """Layers that each read the one before; the last is an output."""
    last = len(shapes) - 1
    return [Layer(f"l{i}", s, f"w{i}" if s.op != ADD else "", (i - 1,), i == last) for i, s in enumerate(shapes)]


def choices(layers: list[Layer], costs: Table, **more: object) -> list[bool]:
    return [x.int8 for x in make_plan(layers, costs, "x86", **more).layers]  # type: ignore[arg-type]


CHEAP, DEAR = Row(ONE, 1.0, 0.4), Row(ONE, 1.0, 0.4, read=0.4, write=0.4)


@pytest.mark.parametrize(
    ("shapes", "row", "wanted", "why"),
    [
        ([LOOK, ONE, LOOK], CHEAP, [False, True, False], "it gains by itself"),
        ([LOOK, ONE, LOOK], DEAR, [False, False, False], "both conversions cost more than it gains"),
        ([LOOK, ONE, ONE, LOOK], DEAR, [False, True, True, False], "two in a row share them"),
        ([LOOK, ONE, ONE, SUM, LOOK], DEAR, [False, True, True, False, False], "a sum runs in FP32"),
        ([ONE, ONE], CHEAP, [True, False], "the output layer stays FP32"),
    ],
)
def test_conversions_are_paid_where_int8_meets_fp32(
    shapes: list[Shape], row: Row, wanted: list[bool], why: str
) -> None:
    known = table(row, Row(LOOK, 0.2), Row(SUM, 0.1))
    assert choices(chain(*shapes), known) == wanted, why


def test_one_fp32_reader_makes_its_writer_write_fp32() -> None:
    layers = [
        Layer("a", ONE, "a", (-1,)),
        Layer("b", ONE, "b", (0,)),
        Layer("look", LOOK, "l", (0,)),  # reads the same as b
        Layer("end", LOOK, "e", (1,), True),
    ]
    rows = [Row(ONE, 1.0, 0.4, 0.0, 0.3), Row(ONE, 1.0, 0.4, 0.1, 0.0), Row(LOOK, 0.2), Row(LOOK, 0.2)]
    costs = Costs(layers, rows)
    assert not costs.writes_int8(0, {0, 1})
    assert costs.of(0, {0, 1}) == pytest.approx(0.7) and costs.of(1, {0, 1}) == pytest.approx(0.5)


def test_depthwise_and_narrow_layers_stay_fp32_and_say_so() -> None:
    few = Shape(CONV, 1, 1, 64, 6, 40, 40)
    made = make_plan(chain(LOOK, ONE, few), table(CHEAP, Row(LOOK, 0.2, 0.1), Row(few, 0.1, 0.01)), "x86")
    assert [x.int8 for x in made.layers] == [False, True, False]
    assert "depthwise" in made.layers[0].why and "output layer" in made.layers[2].why


def test_what_the_kernel_computes_wrongly_stays_fp32() -> None:
    odd = Shape(CONV, 1, 1, 24, 64, 21, 21)
    layers = [Layer("a", odd, "a", (-1,)), Layer("end", LOOK, "e", (0,), True)]
    known = table(Row(odd, 1.0, 0.2), Row(LOOK, 0.2))
    made = make_plan(layers, known, "x86")
    assert not made.layers[0].int8 and "sums wrongly" in made.layers[0].why
    assert make_plan(layers, known, "armv8").layers[0].int8


def test_a_small_model_may_cost_some_time() -> None:
    layers, known = chain(LOOK, ONE, LOOK), table(Row(ONE, 1.0, 1.02), Row(LOOK, 0.2))
    assert choices(layers, known) == [False, False, False]
    assert choices(layers, known, least_gain=-0.05) == [False, True, False]


def test_kept_by_hand() -> None:
    layers = chain(LOOK, ONE, ONE, LOOK)
    known = table(CHEAP, Row(LOOK, 0.2))
    assert choices(layers, known, keep_fp32=["l1"]) == [False, False, True, False]
    with pytest.raises(ToolError, match="--keep-fp32 l9: the model has no such layer; its convolutions are l1, l2"):
        make_plan(layers, known, "x86", ["l9"])


def random_model(rng: np.random.Generator, count: int) -> tuple[list[Layer], list[Row | None]]:
    layers = [
        Layer(f"l{i}", ONE, f"w{i}", (int(rng.integers(-1, i)) if i else -1,), i == count - 1) for i in range(count)
    ]
    rows: list[Row | None] = [Row(ONE, *(float(x) for x in rng.random(4) * [1, 0.7, 0.3, 0.3])) for _ in range(count)]
    return layers, rows


@pytest.mark.parametrize("seed", range(8))
def test_small_groups_are_solved_exactly_and_large_ones_well(seed: int) -> None:
    layers, rows = random_model(np.random.default_rng(seed), 9)
    costs, group = Costs(layers, rows), list(range(9))
    every = (set(c) for n in range(10) for c in itertools.combinations(group, n))
    least = min(costs.total(group, chosen) for chosen in every)
    assert costs.total(group, best_of(group, costs)) == pytest.approx(least)
    for start in (set(), set(group)):
        assert costs.total(group, _descend(group, costs, start)) <= costs.total(group, start)


def test_large_groups_end() -> None:
    layers, rows = random_model(np.random.default_rng(3), MOST_TOGETHER + 8)
    costs, group = Costs(layers, rows), list(range(len(layers)))
    chosen = best_of(group, costs)
    assert costs.total(group, chosen) <= min(costs.total(group, set()), costs.total(group, set(group)))


def test_own_row_goes_before_estimates() -> None:
    known = table(CHEAP, Row(Shape(CONV, 1, 1, 128, 128, 20, 20), 5.0, 1.0))
    assert estimate(known, ONE) == (CHEAP, "measured")


def test_estimate_lies_between_its_neighbours_by_multiplications() -> None:
    small, large = Shape(CONV, 1, 1, 32, 32, 40, 40), Shape(CONV, 1, 1, 128, 128, 40, 40)
    known = table(Row(small, 1e-6 * small.macs, 5e-7 * small.macs), Row(large, 3e-6 * large.macs, 1e-6 * large.macs))
    row, how = estimate(known, ONE) or pytest.fail("nothing found")
    assert how == "estimated"
    assert 1e-6 * ONE.macs < row.fp32 < 3e-6 * ONE.macs and 5e-7 * ONE.macs < (row.int8 or 0) < 1e-6 * ONE.macs


def test_a_kind_without_rows_is_estimated_from_another_or_stays_fp32() -> None:
    patch = Shape(CONV, 2, 2, 16, 64, 80, 80)
    row, how = estimate(table(CHEAP), patch) or pytest.fail("nothing found")
    assert how == "estimated from conv2d 1x1 s1" and row.fp32 == pytest.approx(patch.macs / ONE.macs)
    made = make_plan(chain(patch, LOOK), table(Row(LOOK, 0.2)), "x86")
    assert not made.layers[0].int8 and "no INT8 figure" in made.layers[0].why


@pytest.mark.parametrize(
    ("shape", "plain", "dot"),
    [
        (Shape(CONV, 1, 1, 128, 128, 20, 20), True, True),
        (Shape(CONV, 1, 1, 32, 32, 80, 80), False, True),
        (Shape(CONV, 3, 1, 64, 64, 40, 40), True, True),
        (Shape(DEPTHWISE, 3, 1, 64, 64, 40, 40), False, False),
    ],
)
def test_arm_plan_goes_by_what_the_cores_have(shape: Shape, plain: bool, dot: bool) -> None:
    layers = [Layer("a", shape, "a", (-1,)), Layer("end", LOOK, "e", (0,), True)]
    for has_dot, wanted in ((False, plain), (True, dot)):
        made = make_plan(layers, read_table(TABLES / "armv8.json", has_dot), "armv8")
        assert made.layers[0].int8 == wanted and made.weights == "full"


def test_built_in_x86_table_quantizes_wide_pointwise_layers() -> None:
    layers = chain(LOOK, ONE, ONE, LOOK)
    made = make_plan(layers, read_table(TABLES / "x86.json"), "x86")
    assert [x.int8 for x in made.layers] == [False, True, True, False] and made.weights == "reduced"
    assert made.total() < 0.8 * made.total(False)


def test_plan_reads_back(tmp_path: Path) -> None:
    made = make_plan(chain(LOOK, ONE, LOOK), table(CHEAP, Row(LOOK, 0.2)), "x86")
    write_plan(tmp_path / "p.json", made)
    assert read_plan(tmp_path / "p.json") == made


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"layers": [{"name": "a"}]}'])
def test_what_is_no_plan_or_table_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ToolError, match=r"p\.json: cannot be read as a plan"):
        read_plan(tmp_path / "p.json")
    with pytest.raises(ToolError, match=r"p\.json: cannot be read as a latency table"):
        read_table(tmp_path / "p.json")


def test_plan_of_another_network_is_refused_and_of_another_export_renamed() -> None:
    layers = chain(LOOK, ONE, LOOK)
    made = make_plan(layers, table(CHEAP, Row(LOOK, 0.2)), "x86")
    renumbered = [Layer(x.name, x.shape, f"other_{x.filter}", x.reads, x.is_output) for x in layers]
    assert check_fits(made, renumbered, Path("p")).skipped() == ["other_w0", "other_w2"]
    with pytest.raises(ToolError, match="another network"):
        check_fits(made, chain(LOOK, ONE, ONE, LOOK), Path("p"))


def test_step_leaves_plan_table_plot_and_record(tmp_path: Path) -> None:
    paddle.seed(0)
    layers = ConvNorm(1, 16, 8, 4), ConvNorm(16, 32, 2, 2), ConvNorm(32, 32, 3, groups=32), ConvNorm(32, 64)
    save_layer(nn.Sequential(*layers), tmp_path / "fp32", InputSpec(64, 32, 1))
    main(["--model", str(tmp_path / "fp32"), "--target", "armv8", "--dot", "--out", str(tmp_path / "plan.json")])
    made = read_plan(tmp_path / "plan.json")
    assert [x.name for x in made.layers] == ["0.conv", "1.conv", "2.conv", "3.conv"]
    assert [(x.shape.height, x.shape.width) for x in made.layers] == [(32, 64), (8, 16), (4, 8), (4, 8)]
    assert (tmp_path / "plan.png").stat().st_size > 1000 and "3.conv" in (tmp_path / "plan.txt").read_text()
    assert json.loads((tmp_path / "plan.record.json").read_text())["results"]["layers"] == 4
