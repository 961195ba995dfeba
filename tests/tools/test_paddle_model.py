"""Models on disk: what one trace leaves behind does not reach the next one."""

from __future__ import annotations

from pathlib import Path

import paddle
import pytest
from paddle import nn
from paddle.jit.dy2static import program_translator

from edge.preprocess import InputSpec
from tools.paddle_model import StaticModel, save_layer


def test_a_trace_that_was_never_saved_leaves_nothing_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle files parameters under a program's address, and an address is used again."""
    stray = nn.BatchNorm2D(3)
    monkeypatch.setattr(program_translator, "_program_hash", lambda _program: 1)
    recorder = program_translator.ProgramTranslator.get_instance()._params_recorder
    recorder.add(None, stray.weight)
    save_layer(nn.Conv2D(1, 2, 3), tmp_path / "model", InputSpec(16, 16, 1))
    image = paddle.rand([1, 1, 16, 16]).numpy()
    assert StaticModel.load(tmp_path / "model").run(image)[0].shape == (1, 2, 14, 14)
