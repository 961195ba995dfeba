"""The process in which Paddle Lite's compiler runs: it can abort, and it does not go together with Paddle."""

from __future__ import annotations

import sys


def compile_model(program: str, weights: str, stem: str, places: str) -> None:
    """Compile a Paddle model to `stem`.nb for `places` ("x86" or "arm")."""
    from paddlelite.lite import Opt

    opt = Opt()
    opt.set_model_file(program)
    opt.set_param_file(weights)
    opt.set_model_type("naive_buffer")
    opt.set_valid_places(places)
    opt.set_optimize_out(stem)
    opt.run()


if __name__ == "__main__":
    compile_model(*sys.argv[1:])
