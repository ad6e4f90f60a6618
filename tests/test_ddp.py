"""DistributedDataParallel over two gloo processes: the gradients are the joint batch's."""

import pytest

from tests.compatibility.distributed import WORLD, ranks


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("rank", range(WORLD))
def test_gradients_are_those_of_one_process(rank, kind):
    assert ranks()[rank][f"fastrnn.modules.{kind}"] == ""
