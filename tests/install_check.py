"""Shows that the fastrnn installed here works; tests/install_check.sh runs it in each environment.

    python install_check.py native|reference cuda|cpu REASON

native: the compiled kernels are there, with (cuda) or without (cpu) CUDA code.
reference: they are not; the one warning and show_config() hold REASON.
"""

from __future__ import annotations

import sys
import warnings

import torch


def compare(fastrnn: object) -> None:
    """A small LSTM, forward and backward, against torch.nn's."""
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(5, 7, num_layers=2, dtype=torch.float64)
    ours = fastrnn.LSTM(5, 7, num_layers=2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        output, (h_n, c_n) = module(x)
        (output.square().sum() + c_n.sum()).backward()
        results.append([output, h_n, c_n, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results)


def main(backend: str, kind: str, reason: str) -> None:
    """Check one environment; raises AssertionError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import fastrnn
    said = [str(warning.message) for warning in caught if "fastrnn" in str(warning.message)]
    config = fastrnn.show_config()
    print(config)
    if backend == "native":
        assert not said, said
        from fastrnn import _C

        info = _C.build_info()
        assert bool(info["cuda_archs"]) == (kind == "cuda"), info
        fastrnn.use_backend("native")
    else:
        assert len(said) == 1 and reason in said[0], said
        assert reason in config
    compare(fastrnn)


if __name__ == "__main__":
    main(*sys.argv[1:])
