"""Choosing a backend, and saying why."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastrnn
from fastrnn import _library
from fastrnn.backends import AsAskedNow, asked, choose

native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


@native
def test_auto_prefers_native_and_explains_the_others():
    choice = choose(torch.zeros(1))
    assert choice.backend == "native"
    assert choice.schedule == f"whole sequence on the CPU, {_library.instruction_set}"
    assert set(choice.refused) == {"triton", "reference"}


@native
@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1, dtype=torch.float16), "float64 and bfloat16, got torch.float16"),
        (torch.zeros(1, device="meta"), "cpu and cuda tensors, got meta"),
    ],
)
def test_native_refuses_with_a_reason(tensor, reason):
    choice = choose(tensor)
    assert choice.backend == "reference"
    assert reason in choice.refused["native"]
    with fastrnn.use_backend("native"), pytest.raises(RuntimeError, match=reason):
        choose(tensor)


@native
@pytest.mark.parametrize("option", ["proj_size", "layer_norm"])
def test_options_that_bfloat16_lacks(option):
    choice = choose(torch.zeros(1, dtype=torch.bfloat16), features=[option])
    assert choice.backend == "reference"
    assert choice.refused["native"] == f"the bfloat16 CPU kernels have no {option}"


def test_asked_for_triton_raises():
    with fastrnn.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was asked for"):
        fastrnn.LSTM(2, 3)(torch.zeros(4, 1, 2))


def test_use_backend_is_a_call_and_a_context():
    before = choose(torch.zeros(1)).backend
    with fastrnn.use_backend("reference"):
        assert choose(torch.zeros(1)).backend == "reference"
        with fastrnn.use_backend("auto"):
            assert choose(torch.zeros(1)).backend == before
        assert choose(torch.zeros(1)).backend == "reference"
    assert choose(torch.zeros(1)).backend == before
    fastrnn.use_backend("reference")
    assert choose(torch.zeros(1)).backend == "reference"
    fastrnn.use_backend("auto")
    assert choose(torch.zeros(1)).backend == before
    with pytest.raises(ValueError, match="backend must be one of .*, got 'cuda'"):
        fastrnn.use_backend("cuda")


def in_new_thread(function):
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


def test_a_block_is_for_its_thread_and_leaves_nothing_behind():
    """Blocks of two threads that overlap, whichever ends first."""
    before = asked()
    entered, left = threading.Barrier(2), threading.Event()

    def other():
        with fastrnn.use_backend("native"):
            entered.wait()
            left.wait()
            return asked()

    with ThreadPoolExecutor(1) as threads:
        with fastrnn.use_backend("reference"):
            result = threads.submit(other)
            entered.wait()
            assert asked() == "reference"
            assert in_new_thread(asked) == before
        left.set()
        assert result.result() == "native"
    assert asked() == in_new_thread(asked) == before


def test_blocks_that_begin_at_once():
    before = asked()
    first, second = fastrnn.use_backend("reference"), fastrnn.use_backend("native")
    for block in (first, second):
        block.__enter__()
    assert in_new_thread(asked) == before
    for block in (second, first):
        block.__exit__()
    assert asked() == before


def test_a_call_is_for_every_thread():
    before = asked()
    try:
        in_new_thread(lambda: fastrnn.use_backend("reference"))
        assert asked() == "reference"
        with fastrnn.use_backend("native"):
            assert asked() == "native"
    finally:
        fastrnn.use_backend(before)


def test_what_was_asked_for_is_asked_again_later_in_any_thread():
    with fastrnn.use_backend("reference"):
        later = AsAskedNow()

    def run():
        with later, fastrnn.use_backend("native"), later:
            return asked()

    assert run() == in_new_thread(run) == "reference"


def test_a_compiled_program_follows_its_thread():
    def function(x):
        with fastrnn.use_backend("reference"):
            inside = asked()
        return x + (10 if inside == "reference" else 0) + (asked() == "native")

    torch._dynamo.reset()
    compiled, x = torch.compile(function, fullgraph=True, backend="eager"), torch.zeros(1)

    def in_a_block():
        with fastrnn.use_backend("native"):
            return compiled(x).item()

    with fastrnn.use_backend("auto"):
        assert compiled(x).item() == 10
        assert in_a_block() == in_new_thread(in_a_block) == 11
        assert compiled(x).item() == 10


@native
def test_explain_names_every_backend():
    text = fastrnn.explain(fastrnn.GRU(3, 4, reset_after=False))
    assert text.splitlines()[0].startswith("native: runs gru_reset_before (whole sequence")
    assert "triton: no, " in text
    assert "reference: no, slower than native" in text
    projected = fastrnn.explain(fastrnn.LSTM(3, 4, proj_size=2))
    assert projected.startswith("native: runs lstm")
    with pytest.raises(TypeError, match="must be a fastrnn module, got LSTM"):
        fastrnn.explain(torch.nn.LSTM(3, 4))
    with pytest.raises(TypeError, match="explain: input must be a Tensor, got list"):
        fastrnn.explain(fastrnn.LSTM(3, 4), [1])


def test_explain_takes_what_the_module_takes():
    module, x = fastrnn.GRU(3, 4), torch.zeros(5, 3)
    packed = torch.nn.utils.rnn.pack_sequence([x, x[:2]])
    assert fastrnn.explain(module, packed) == fastrnn.explain(module, x.unsqueeze(1))
    for wrong in (module, fastrnn.MultiHeadAttention(8, 2)):
        with pytest.raises(TypeError, match="explain: input must be a Tensor, got list"):
            fastrnn.explain(wrong, [1.0])


def test_backends_agree():
    torch.manual_seed(0)
    module, x = fastrnn.LSTM(5, 7, 2, bidirectional=True), torch.randn(6, 3, 5)
    output, _ = module(x)
    with fastrnn.use_backend("reference"):
        expected, _ = module(x)
    torch.testing.assert_close(output, expected)


def in_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("FASTRNN_BACKEND", "FASTRNN_BACKEND: backend must be one of"),
        ("FASTRNN_CPU", "FASTRNN_CPU must be one of"),
        ("FASTRNN_SCHEDULE", "FASTRNN_SCHEDULE: schedule must be one of"),
    ],
)
def test_bad_environment_is_named(variable, message):
    if variable == "FASTRNN_CPU" and _library.unavailable is not None:
        pytest.skip("no compiled kernels")
    layers = "import fastrnn, torch; fastrnn.RNN(2, 3)(torch.zeros(1, 1, 2))"
    program = "import sys; from fastrnn.train import main; sys.exit(main(['--epochs', '1']))"
    found = [in_new_process(code, **{variable: "fast"}) for code in (layers, program)]
    assert [each.returncode for each in found] == [1, 2]
    for each in found:
        assert message in each.stderr.splitlines()[-1]
        assert "fast" in each.stderr.splitlines()[-1]
    assert found[1].stderr.count("\n") == 1


def test_an_empty_environment_chooses_nothing():
    names = ("FASTRNN_BACKEND", "FASTRNN_CPU", "FASTRNN_SCHEDULE")
    found = in_new_process(
        "import fastrnn; print(fastrnn.show_config())", **dict.fromkeys(names, "")
    )
    assert found.stdout.splitlines()[-1] == "asked for: auto"


@native
def test_kernels_of_another_version_are_not_loaded():
    found = in_new_process(
        "import sys, types\n"
        "facts = {'schemas': 'of another version'}\n"
        "sys.modules['fastrnn._C'] = types.SimpleNamespace(build_info=lambda: facts)\n"
        "import fastrnn; print(fastrnn.explain(fastrnn.RNN(2, 3)))\n"
        "print('libfastrnn.so' in open('/proc/self/maps').read())\n"
    )
    assert "the compiled kernels are of another version of fastrnn" in found.stdout
    assert found.stdout.startswith("reference: runs") and found.stdout.endswith("False\n")
    assert found.stderr.count("RuntimeWarning: fastrnn runs on the reference backend") == 1


def test_environment_chooses():
    code = "import fastrnn; print(fastrnn.explain(fastrnn.RNN(2, 3)))"
    found = in_new_process(code, FASTRNN_BACKEND="reference")
    assert found.stdout.startswith("reference: runs rnn_tanh (step by step in torch)")


def test_show_config_lists_versions_and_backends():
    text = fastrnn.show_config()
    for word in (fastrnn.__version__, torch.__version__, "native:", "triton:", "reference:"):
        assert word in text


@pytest.mark.parametrize("name", ["recurrence", "masked_attention", "linear_cross_entropy"])
def test_every_function_is_in_functional(name):
    assert getattr(fastrnn.functional, name) is getattr(fastrnn, name)
