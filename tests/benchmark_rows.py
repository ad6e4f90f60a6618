"""Made-up rows of benchmarks, as a run leaves them."""

import copy

from benchmarks.layers import Shape


def made_up(case="layers/lstm/train/35x20x200x200x2/float32/native", malloc="default", **changes):
    row = {
        "case": case,
        "suite": case.split("/")[0],
        "malloc": malloc,
        **{"cell": "lstm", "mode": "train", "dtype": "float32", "backend": "native"},
        **Shape(35, 20, 200, 200, 2)._asdict(),
        "quick": False,
        "threads": 2,
        "times": {
            "ours": {"p20": 9.9, "p50": 10.0, "p80": 10.1, "rounds": 25},
            "torch.nn": {"p20": 14.9, "p50": 15.0, "p80": 15.2, "rounds": 25},
        },
        "ratio": {"torch.nn": 1.5},
        "rejected": 0,
        "disturbed": False,
        "bytes": 12_000_000,
        "memory": {"ours": 10_000_000, "torch.nn": 20_000_000},
        "floor": {
            **{"gflops": 500.0, "gbytes": 200.0, "barrier_us": 0.3, "products_ms": 6.0},
            **{"bytes_ms": 0.06, "barriers_ms": 0.04, "ms": 6.0, "fraction": 0.6},
        },
        **{"date": "2026-01-01T00:00:00Z", "commit": "abc1234", "dirty": False, "cpu": "a cpu"},
        **{"fastrnn": "0.1.0", "torch": "2.13.0", "python": "3.11", "instruction_set": "avx512"},
    }
    return row | changes


def scaled(row, ours=1.0, peer=1.0):
    row = copy.deepcopy(row)
    for name, factor in (("ours", ours), ("torch.nn", peer)):
        for p in ("p20", "p50", "p80"):
            row["times"][name][p] *= factor
    return row
