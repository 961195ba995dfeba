"""Layers' costs are told apart from what is around them, measured with Paddle Lite itself, and kept as they come."""

from __future__ import annotations

import json
from pathlib import Path

import paddle
import pytest

from edge.preprocess import InputSpec
from tools import latency_table
from tools.errors import ToolError
from tools.latency_table import Row, main, measure, network_layers, probes, read_table, row_of
from tools.layers import ADD, CONV, DEPTHWISE, UPSAMPLE, Shape, consumers, read_layers
from tools.lite_timer import Job, time_jobs
from tools.network import Detector, NetworkConfig
from tools.paddle_model import save_layer

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy

SIZES = {"stem": 8, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 16}
SMALL = NetworkConfig(classes=2, expand=2.0, **SIZES)
POINT = Shape(CONV, 1, 1, 32, 64, 16, 16)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small detector at a rectangular input."""
    folder = tmp_path_factory.mktemp("exported")
    paddle.seed(0)
    save_layer(Detector(SMALL), folder, InputSpec(128, 64, 1))
    return folder


def test_layers_follow_the_network(exported: Path) -> None:
    layers = read_layers(exported)
    by_name = {layer.name: (place, layer) for place, layer in enumerate(layers)}
    place, expand = by_name["stage8.0.expand.conv"]
    assert expand.shape == Shape(CONV, 1, 1, 16, 32, 8, 16)
    assert [layers[p].name for p in consumers(layers)[place]] == ["stage8.0.project.conv"]
    assert layers[expand.reads[0]].shape.op == DEPTHWISE
    assert by_name["stem.conv"][1].reads == (-1,) and by_name["stem.conv"][1].shape.stride == 4
    assert [layer.name for layer in layers if layer.is_output] == ["cls", "reg"]
    ops = {layer.shape.op for layer in layers}
    assert ops == {CONV, DEPTHWISE, ADD, UPSAMPLE}, "BatchNorm, bias and ReLU are parts of convolutions"


def test_sum_reads_both_branches(exported: Path) -> None:
    layers = read_layers(exported)
    place = next(p for p, layer in enumerate(layers) if layer.name == "stage8.0.project.conv")
    total = layers[consumers(layers)[place][0]]
    assert total.shape.op == ADD and {layers[p].name for p in total.reads} == {"down8.conv", "stage8.0.project.conv"}


def test_names_are_the_networks_whatever_paddle_calls_the_variables(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        if path.suffix != ".info":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert {layer.name for layer in read_layers(tmp_path) if layer.filter} == {
        layer.filter for layer in read_layers(exported) if layer.filter
    }
    save_layer(Detector(SMALL), tmp_path, InputSpec(128, 64, 1))
    assert [x.name for x in read_layers(tmp_path)] == [x.name for x in read_layers(exported)]


def test_damaged_names_are_said(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.pdiparams.info").write_bytes(b"nothing")
    with pytest.raises(ToolError, match=r"model\.pdiparams\.info: damaged"):
        read_layers(tmp_path)


@pytest.mark.parametrize(
    ("ms", "wanted"),
    [
        ({"fp32": 3, "from_fp32": 1.5, "from_int8": 1.2, "to_int8": 1.3, "tail": 0.2}, (3, 0.8, 0.3, 0.4)),
        ({"fp32": 3, "from_fp32": 1.0, "from_int8": 1.1, "to_int8": 1.3, "tail": 0.2}, (3, 1.1, 0.0, 0.0)),
        ({"fp32": 3, "from_fp32": 1.5, "to_int8": 1.3, "tail": 0.2}, (3, 1.1, 0.0, 0.4)),
        ({"fp32": -0.1}, (0.001, None, 0.0, 0.0)),
    ],
)
def test_differences_of_times_become_costs(ms: dict[str, float], wanted: tuple[float | None, ...]) -> None:
    row = row_of(POINT, ms)
    assert [row.fp32, row.read, row.write] == pytest.approx([wanted[0], wanted[2], wanted[3]])
    assert row.int8 == (None if wanted[1] is None else pytest.approx(wanted[1]))


def test_only_what_may_be_quantized_is_measured_in_int8() -> None:
    assert set(probes(POINT)) == {"fp32", "from_fp32", "from_int8", "to_int8", "tail"}
    assert set(probes(Shape(CONV, 8, 4, 1, 16, 64, 64))) == {"fp32", "from_fp32", "to_int8", "tail"}
    for shape in (Shape(CONV, 1, 1, 32, 6, 8, 8), Shape(DEPTHWISE, 3, 1, 32, 32, 8, 8), Shape(ADD, 1, 1, 8, 8, 8, 8)):
        assert set(probes(shape)) == {"fp32"}


def test_more_work_takes_longer_on_this_machine() -> None:
    little, much = (Shape(CONV, 1, 1, *sizes) for sizes in ((16, 8, 8, 8), (512, 8, 64, 64)))
    assert 0 < measure(little, 3, 3).fp32 < measure(much, 3, 3).fp32


def test_int8_is_measured_on_this_machine() -> None:
    row = measure(POINT, 2, 2)
    assert row.int8 is not None and row.int8 > 0 and row.read >= 0 and row.write >= 0


def test_step_goes_on_where_it_stopped(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [Shape(ADD, 1, 1, 16, 16, 8, 16), Shape(UPSAMPLE, 2, 1, 16, 16, 4, 8)]
    monkeypatch.setattr(latency_table, "known", lambda found: [s for s in shapes if s in list(found)])
    arguments = ["--network", str(exported), "--turns", "1", "--rounds", "1", "--out", str(tmp_path / "t.json")]
    main(arguments)
    first = read_table(tmp_path / "t.json")
    assert [row.shape for row in first.rows] == shapes and all(row.fp32 > 0 for row in first.rows)
    monkeypatch.setattr(latency_table, "measure", lambda *_: pytest.fail("measured again"))
    main(arguments)
    assert read_table(tmp_path / "t.json") == first
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["machine"]["cpu"] == first.machine and "environment" in content["machine"]
    assert (tmp_path / "t.png").stat().st_size > 1000 and (tmp_path / "t.record.json").is_file()


def test_environment_that_steers_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_SOMETHING", "1")
    assert latency_table.measured_on()["environment"]["OMP_SOMETHING"] == "1"


def test_default_network_has_the_layers_of_its_input_size() -> None:
    shapes = network_layers("default", (320, 192), 3)
    assert shapes[0] == Shape(CONV, 8, 4, 3, shapes[0].outputs, 192, 320)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"ends in \.json"):
        main(["--out", str(tmp_path / "table")])
    with pytest.raises(ToolError, match=r"none\.pdckpt: missing"):
        main(["--out", str(tmp_path / "t.json"), "--network", str(tmp_path / "none.pdckpt")])
    (tmp_path / "t.json").write_text(json.dumps({"unit": "ms", "machine": {"cpu": "x"}, "rows": []}))
    with pytest.raises(ToolError, match="no figures for cores with dot products"):
        read_table(tmp_path / "t.json", dot=True)


def test_a_compiler_that_dies_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"no program"), (tmp_path / "w").write_bytes(b"no weights")
    with pytest.raises(ToolError, match=r"Paddle Lite (died|cannot).*bad\.nb"):
        time_jobs([Job(tmp_path / "p", tmp_path / "w", tmp_path / "bad.nb", ((1, 1, 8, 8),))], "x86", 1, 1)


def test_rows_are_rounded_for_the_file() -> None:
    wanted = {"fp32": 1.2346, "int8": 0.1234, "read": 0.0, "write": 0.0}
    assert latency_table.rounded(Row(POINT, 1.23456, 0.12344)) == wanted
