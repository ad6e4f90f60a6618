"""Random calls: torch.nn (or the reference) and ours agree on results, gradients and refusals."""

import pytest
from hypothesis import HealthCheck, given, settings

from fastrnn import _library
from tests.fuzz_cases import calls, compare
from tests.fuzz_mistakes import compare_mistake, mistakes
from tests.fuzz_options import compare_backends, option_calls

pytestmark = pytest.mark.filterwarnings("ignore:dropout option adds dropout")
# The same cases in every run.
FIXED = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}
SIZES = [200, pytest.param(2000, marks=pytest.mark.slow)]
KINDS = {"calls": (calls, compare), "mistakes": (mistakes, compare_mistake)}
if _library.unavailable is None:  # or there is nothing to compare
    KINDS["options"] = (option_calls, compare_backends)


@pytest.mark.parametrize("cases", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(kind, cases, record_property, capsys):
    strategy, check = KINDS[kind]
    tried = 0

    @settings(max_examples=cases, **FIXED)
    @given(strategy())
    def run(case):
        nonlocal tried
        tried += 1
        check(case)

    run()
    record_property("cases", tried)
    with capsys.disabled():
        print(f" {tried} random {kind} ", end="")
    assert tried >= cases
