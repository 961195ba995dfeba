"""A bundle without classes: what is unlike the good parts is a REVIEW, with every runtime, and nothing is ever NG."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from edge.bundle import manifest
from edge.config import Runtime
from edge.serving import open_product
from tools.errors import ToolError
from tools.good_parts import main
from tools.judge_model import write_judge
from tools.network import ConvNorm, Detector, FeaturesOnly, NetworkConfig

pytestmark = pytest.mark.timeout(600)

NARROW = NetworkConfig(
    classes=1, channels=1, stem=8, width8=16, width16=24, width32=32, depth8=1, depth16=1, depth32=1, kernel=3, neck=32
)
SIZE = (128, 64)


def photo(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(128, 20, (SIZE[1], SIZE[0])).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trunk, judge, recipe, notes and images, as small as they can be."""
    root = tmp_path_factory.mktemp("parts")
    paddle.seed(3)
    rng = np.random.default_rng(2)
    trunk = FeaturesOnly(Detector(NARROW))
    images = [photo(rng) for _ in range(20)]
    write_judge(trunk, "detector", [(x[None] / 255).astype(np.float32) for x in images], root / "models")
    judge = paddle.nn.Sequential(ConvNorm(32, 32), paddle.nn.Conv2D(32, 4, 1))
    features = list(rng.normal(0, 1, (20, 32, 8, 16)).astype(np.float32))
    write_judge(judge, "anomaly", features, root / "anomaly")
    settings = {"kind": "square", "threshold": 1e9, "map_limit": 1e9}
    (root / "anomaly" / "anomaly.json").write_text(json.dumps(settings))
    (root / "recipe.toml").write_text('name = "plate"\n')
    (root / "notes.md").write_text("- Drawn noise, CC0.\n")
    (root / "images").mkdir()
    for number, image in enumerate(images[:3]):
        cv2.imwrite(str(root / "images" / f"{number}.png"), image)
    return root


def arguments(parts: Path, out: Path) -> list[str]:
    folders = ["--models", str(parts / "models"), "--anomaly", str(parts / "anomaly")]
    texts = ["--recipe", str(parts / "recipe.toml"), "--notes", str(parts / "notes.md")]
    what = ["--product", "plate", "--size", *map(str, SIZE), "--channels", "1", "--try-on", str(parts / "images")]
    return [*what, *folders, *texts, "--out", str(out)]


def verdicts(parts: Path) -> dict[str, dict[str, int]]:
    return dict(json.loads((parts / "models" / "good_parts.json").read_text())["results"]["verdicts"])


def test_good_parts_pass_and_foreign_ones_go_to_a_person(parts: Path, tmp_path: Path) -> None:
    main(arguments(parts, tmp_path / "plate"))
    built = manifest.read(tmp_path / "plate")
    assert built.classes == [] and built.strides == [] and built.features == manifest.Features(channels=32, stride=8)
    assert verdicts(parts) == {"paddlelite": {"OK": 3}, "onnxruntime": {"OK": 3}}
    assert "never says NG" in (tmp_path / "plate" / "CARD.md").read_text()
    settings = {"kind": "square", "threshold": 0.0, "map_limit": 0.0}
    (parts / "anomaly" / "anomaly.json").write_text(json.dumps(settings))
    main(arguments(parts, tmp_path / "plate"))
    assert verdicts(parts) == {"paddlelite": {"REVIEW": 3}, "onnxruntime": {"REVIEW": 3}}
    assert manifest.read(tmp_path / "plate").version == 2
    product = open_product(tmp_path / "plate", Runtime())
    assert product.classes == () and product.judges.anomaly is not None


def test_what_is_missing_is_named_and_the_old_bundle_stays(parts: Path, tmp_path: Path) -> None:
    main(arguments(parts, tmp_path / "plate"))
    before = manifest.read(tmp_path / "plate")
    given = arguments(parts, tmp_path / "plate")
    given[given.index("--models") + 1] = str(parts / "anomaly")
    with pytest.raises(ToolError, match=r"lacks detector\.x86_64\.int8\.nb, .*`python -m tools normal_parts` writes"):
        main(given)
    assert manifest.read(tmp_path / "plate") == before
