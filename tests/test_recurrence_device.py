"""The CUDA operators' host side over emulated kernels on CPU tensors: walk, products, sums."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch

from build_tools import toolchain
from fastrnn import _cuda, ops
from fastrnn.cells import CELLS, COMPILED
from tests import emulated
from tests.emulator import Layout
from tests.layers import (
    assert_all_as_close_as_torch,
    assert_as_close_as_torch,
    everything,
    named,
    output_grads,
    random_layer,
)
from tests.test_bidirectional import layer_of
from tests.test_wavefront import stack_of

try:
    toolchain.compiler()
except toolchain.BuildError as error:
    pytest.skip(str(error), allow_module_level=True)

_C = pytest.importorskip("fastrnn._C", reason="no compiled module")
# A few roundings of each dtype, relative to the largest value.
FLOORS = {
    torch.float32: 1e-6,
    torch.float64: 2e-14,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
# batch_sizes, I, H
SHAPES = {
    "one": ([1], 1, 1),
    "step": ([5], 12, 33),
    "padded": ([3, 3, 3, 3], 8, 40),
    "ragged": ([5, 5, 3, 3, 1], 7, 24),
    "ended": ([3, 2, 0], 5, 9),
}
CELL_NAMES = [name for name in CELLS if name in COMPILED]
PERSISTENT = ["cluster", "grid"]
SCHEDULES = ["step", *PERSISTENT]


def has(schedule, dtype):
    """Whether a schedule has kernels; test_plan.py asserts what is said where it has none."""
    wide = (torch.float64,) if schedule == "cluster" else (torch.float32, torch.float64)
    return schedule == "step" or dtype not in wide


# Clusters take long to emulate; test_cuda_cluster.py has their grid.
RUNS = [
    (schedule, cell, dtype)
    for schedule in SCHEDULES
    for cell in CELL_NAMES
    for dtype in (FLOORS if schedule == "step" else (torch.float32, torch.bfloat16))
    if has(schedule, dtype)
]
every_run = pytest.mark.parametrize(("schedule", "cell", "dtype"), RUNS, indirect=["schedule"])
IN_FLOAT32 = [run[:2] for run in RUNS if run[2] == torch.float32]
every_cell = pytest.mark.parametrize(("schedule", "cell"), IN_FLOAT32, indirect=["schedule"])


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Everything torch allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def schedule(request):
    found = emulated.operators()
    found.use_cuda_schedule.default(request.param)
    yield request.param
    found.use_cuda_schedule.default("auto")


def by_operators(layer):
    run = emulated.operators()
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    results = run.recurrence.default(*arguments, True)
    output, _, cells, reserve = results
    *rows, cell, reverse = arguments
    grads = run.recurrence_backward.default(
        *output_grads(results[:3]), *rows, output, cells, reserve, cell, reverse, True, True
    )
    present = [g for g, t in zip(grads, layer.tensors, strict=True) if t is not None]
    return named(layer, results, present)


def check(layer, dtype):
    rounded = layer.to(dtype)
    assert_all_as_close_as_torch(
        by_operators(rounded),
        everything(ops.reference, rounded),
        everything(ops.reference, layer),
        FLOORS[dtype],
    )


@pytest.mark.parametrize("shape", SHAPES)
@every_run
def test_grid(schedule, cell, dtype, shape):
    # What is around a loop is the same for every schedule.
    short = schedule != "step"
    for reverse in (shape == "ragged",) if short else (False, True):
        for bias, projected in ((True, False), (False, False), (True, True))[: 1 if short else 3]:
            sizes = SHAPES[shape]
            check(
                random_layer(cell, *sizes, bias=bias, projected=projected, reverse=reverse), dtype
            )


@pytest.mark.parametrize("schedule", PERSISTENT, indirect=True)
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_tf32(schedule, cell):
    run = emulated.operators()
    layer = random_layer(cell, [5, 5, 3], 8, 40)
    exact = everything(ops.reference, layer)
    run.use_cuda_tf32.default(True)
    try:
        ours = by_operators(layer.to(torch.float32))
    finally:
        run.use_cuda_tf32.default(False)
    assert ours.keys() == exact.keys()
    for name, right in exact.items():
        if name in ("output", "state_n"):
            assert 1e-6 < (ours[name].double() - right).abs().max() < 2e-3, name
        elif name.startswith("grad_"):
            assert_as_close_as_torch(name, ours[name], right, right, 4 * 2**-10)


@pytest.mark.parametrize("schedule", SCHEDULES, indirect=True)
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_both_directions(schedule, cell, extras):
    run, dtype = emulated.operators(), torch.bfloat16
    ways, args = layer_of(cell, sizes=(10, 10, 3), extras=extras)
    lower = [way.to(dtype) for way in ways]
    lower[1].tensors[0] = lower[0].tensors[0]
    args = [
        a.detach().to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    ]
    results = run.recurrence_both.default(*args, True)
    given = [*output_grads(results[:3]), *output_grads(results[4:7])]
    saved = (results[i] for i in (0, 2, 3, 4, 6, 7))
    grads = run.recurrence_both_backward.default(*given, *args[:-1], *saved, cell, True, True)
    for k, (way, rounded) in enumerate(zip(ways, lower, strict=True)):
        assert_all_as_close_as_torch(
            named(way, results[4 * k : 4 * k + 4], grads[6 * k : 6 * k + 6]),
            everything(ops.reference, rounded),
            everything(ops.reference, way),
            FLOORS[dtype],
        )


def ends(results):
    """What a stack's gradients come back to: the last output, the last cells, all last states."""
    return [results[-4], results[-2], *results[1::4]]


def stack_by_operators(args, save=True):
    run = emulated.operators()
    input, batch_sizes, resets, cell, bias, *layers = args
    rows = (batch_sizes, resets)
    results = run.recurrence_stack.default(input, layers, *rows, cell, bias, save)
    if not save:
        return results
    output, cells, *states = output_grads(ends(results))
    saved = [t for i, t in enumerate(results) if i % 4 != 1]
    return results + run.recurrence_stack_backward.default(
        output, cells, states, input, layers, *rows, saved, cell, bias, True, True, True
    )


def stack_by_reference(args, dtype):
    moved = [a.detach().to(dtype).requires_grad_() if is_floating(a) else a for a in args]
    (rows, batch_sizes, resets, cell, bias), layers = moved[:5], moved[5:]
    each, results = 5 if bias else 3, []
    for k in range(0, len(layers), each):
        tensors = (*layers[k : k + each], *[None] * (7 - each))
        options = (batch_sizes, resets, None, None, [], cell, False)
        results += ops.reference(rows, *tensors, *options)
        rows = results[-4]
    total = sum(
        (t * g).sum() for t, g in zip(ends(results), output_grads(ends(results)), strict=True)
    )
    grads = torch.autograd.grad(total, [t for t in moved if is_floating(t)])
    return [t.detach() for t in (*results, *grads)]


# Short sequences run layer by layer, long ones in one launch.
@pytest.mark.parametrize("schedule", ["auto", "step"], indirect=True)
@pytest.mark.parametrize("sizes", [(3,) * 12, (3, 3) + (2,) * 7 + (1,) * 3, (3, 2)], ids=str)
@pytest.mark.parametrize(("cell", "layers", "bias"), [("lstm", 2, True), ("rnn_tanh", 3, False)])
def test_stack(schedule, sizes, cell, layers, bias):
    dtype, hidden = torch.bfloat16, 24
    for backward in (False, True):
        found = _C.plan(
            *(cell, "bfloat16", len(sizes), 3, hidden),
            **{"layers": layers, "backward": backward, "schedule": schedule},
            **{"capability": 90, "processors": 132, "shared_memory": 232448},
        )
        assert (found["layers"] == layers) == (schedule == "auto" and len(sizes) == 12)
    _, args = stack_of(cell, sizes, layers, bias, resets=True, hidden=hidden)
    lower = [a.detach().to(dtype) if is_floating(a) else a for a in args]
    ours = stack_by_operators(lower)
    torchs, exact = stack_by_reference(args, dtype), stack_by_reference(args, torch.float64)
    assert len(ours) == len(exact) == 4 * layers + 1 + layers * (5 if bias else 3)
    for i, values in enumerate(zip(ours, torchs, exact, strict=True)):
        assert_as_close_as_torch(str(i), *values, FLOORS[dtype])
    inferred = stack_by_operators(lower, save=False)
    for i, (a, b) in enumerate(zip(inferred, ours, strict=False)):
        assert torch.equal(a, b) if i % 4 < 2 else a.numel() == 0


@pytest.fixture
def refusing(request):
    found = emulated.operators()
    for name in request.param:
        found.refuse_launch.default(name, True)
    yield request.param
    for name in _cuda.LAUNCHES:
        found.refuse_launch.default(name, False)


@pytest.mark.parametrize(
    ("refusing", "dtype"),
    [(("cluster",), torch.float32), (("cluster",), torch.bfloat16), (("grid",), torch.bfloat16)]
    + [(("cluster", "grid"), torch.bfloat16)],
    indirect=["refusing"],
)
def test_a_refused_launch_is_run_by_another_schedule(refusing, dtype):
    for cell in ("lstm", "gru_reset_before"):
        check(random_layer(cell, [3, 3, 2], 6, 24), dtype)
    run, layer = emulated.operators(), random_layer("gru", [3, 3, 2], 6, 24).to(dtype)
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    run.use_cuda_schedule.default(refusing[0])
    try:
        for _ in range(2):  # tried and refused, or not tried again
            with pytest.raises(RuntimeError, match="could not be launched here: refused by a"):
                run.recurrence.default(*arguments, True)
    finally:
        run.use_cuda_schedule.default("auto")
    this, another = ([run.launch_failure.default(on, i) for i in range(3)] for on in (-1, 0))
    assert this == ["refused by a test" if name in refusing else "" for name in _cuda.LAUNCHES]
    assert another == ["", "", ""]  # another device may take it


@pytest.mark.parametrize("refusing", [["layers"], _cuda.LAUNCHES], ids=str, indirect=True)
def test_a_refused_stack_runs_layer_by_layer(refusing):
    _, args = stack_of("lstm", (3,) * 12, 2, True, resets=True, hidden=24)
    lower = [a.detach().to(torch.bfloat16) if is_floating(a) else a for a in args]
    ours, exact = stack_by_operators(lower), stack_by_reference(args, torch.float64)
    torchs = stack_by_reference(args, torch.bfloat16)
    for i, values in enumerate(zip(ours, torchs, exact, strict=True)):
        assert_as_close_as_torch(str(i), *values, FLOORS[torch.bfloat16])


def is_floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def test_mistaken_stacks():
    run = emulated.operators().recurrence_stack.default
    _, args = stack_of("lstm", (3, 3), 2, hidden=8)
    input, batch_sizes, _, cell, bias, *layers = [
        a.detach().to(torch.bfloat16) if is_floating(a) else a for a in args
    ]
    options = (batch_sizes, None, cell, bias, True)
    with pytest.raises(RuntimeError, match="recurrence: layers must have 5 tensors each, got 9"):
        run(input, layers[:-1], *options)
    with pytest.raises(RuntimeError, match="all layers must have H units, got 8 and 4"):
        run(input, [*layers[:5], layers[5][..., :4], *layers[6:]], *options)
    with pytest.raises(RuntimeError, match=r"weight_ih must be \[32, 8\], got \[32, 7\]"):
        run(input, [*layers[:6], layers[6][:, :7], *layers[7:]], *options)


@pytest.mark.parametrize("reverse", [False, True])
@every_run
def test_resets(schedule, cell, dtype, reverse):
    layer = random_layer(cell, [4, 4, 3, 1], 6, 20, reverse=reverse)
    resets, _, _, _ = layer.with_extras(drawn=False).extras
    check(replace(layer, extras=(resets, None, None, [])), dtype)


@pytest.mark.parametrize("drawn", [True, False])
@every_run
def test_zoneout_and_resets(schedule, cell, dtype, drawn):
    layer = random_layer(cell, [4, 4, 3, 1], 6, 20, reverse=drawn)
    check(layer.with_extras(drawn=drawn), dtype)


@pytest.mark.parametrize(
    ("schedule", "norm"),
    [(schedule, False) for schedule in SCHEDULES] + [("step", True)],
    indirect=["schedule"],
)
def test_zoneout_of_zeros_has_its_slots(schedule, norm):
    layer = random_layer("lstm", [4, 4, 3, 1], 6, 20, norm=norm)
    check(replace(layer, extras=(None, None, None, [0.0, 0.0])), torch.bfloat16)


@every_cell
def test_inference_equals_training(schedule, cell):
    layer = random_layer(cell, [6, 6, 3], 10, 24).to(torch.float32)
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    run = emulated.operators().recurrence.default
    trained, inferred = run(*arguments, True), run(*arguments, False)
    assert torch.equal(trained[0], inferred[0])
    assert torch.equal(trained[1], inferred[1])
    assert inferred[2].numel() == inferred[3].numel() == 0


@every_cell
def test_opcheck(schedule, cell):
    run = emulated.operators()
    layer = random_layer(cell, [3, 2], 4, 8).to(torch.float32)
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    # The namespace has no autograd of its own.
    tests = ("test_schema", "test_faketensor")
    for save in (True, False):
        torch.library.opcheck(run.recurrence.default, (*arguments, save), test_utils=tests)
    output, _, cells, reserve = run.recurrence.default(*arguments, True)
    for wanted in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            run.recurrence_backward.default,
            (output.cos(), None, None, *arguments[:13], output, cells, reserve, cell, False)
            + wanted,
            test_utils=tests,
        )


@every_cell
def test_gradients_nobody_wants_are_empty(schedule, cell):
    layer = random_layer(cell, [3, 2], 4, 8).to(torch.float32)
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    run = emulated.operators()
    output, _, cells, reserve = run.recurrence.default(*arguments, True)
    saved = (*arguments[:13], output, cells, reserve, cell, False)
    every = run.recurrence_backward.default(output.cos(), None, None, *saved, True, True)
    for input_grad, weight_grad in ((False, True), (True, False), (False, False)):
        some = run.recurrence_backward.default(
            output.cos(), None, None, *saved, input_grad, weight_grad
        )
        wanted = (input_grad, True, *[weight_grad] * 6)
        for a, b, w in zip(some, every, wanted, strict=True):
            assert torch.equal(a, b if w else b.new_empty(0))


@pytest.mark.parametrize("schedule", ["step", "cluster"], indirect=True)
def test_empty_batch(schedule):
    run = emulated.operators()
    x, state = torch.zeros(0, 5), torch.zeros(1, 0, 4)
    w_ih, w_hh, b = torch.ones(12, 5), torch.ones(12, 4), torch.ones(12)
    rows = (torch.zeros(3, dtype=torch.int64), None, None, None, [])
    args = (x, state, w_ih, w_hh, b, b, None, None, *rows)
    output, state_n, cells, reserve = run.recurrence.default(*args, "gru", False, True)
    assert (output.shape, state_n.shape, reserve.shape) == ((0, 4), (1, 0, 4), (0, 16))
    grads = run.recurrence_backward.default(
        output, None, None, *args, output, cells, reserve, "gru", False, True, True
    )
    assert torch.equal(grads[2], torch.zeros_like(w_ih))
    assert torch.equal(grads[3], torch.zeros_like(w_hh))


@pytest.mark.parametrize("schedule", ["step", "cluster"], indirect=True)
def test_strided_and_mistaken_arguments(schedule):
    run = emulated.operators().recurrence.default
    layer = random_layer("lstm", [3, 3, 1], 6, 8).to(torch.float32)
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    expected = run(*args, False)
    strided = [a.T.contiguous().T if torch.is_tensor(a) and a.dim() == 2 else a for a in args]
    for a, b in zip(run(*strided, False), expected, strict=True):
        assert torch.equal(a, b)
    for place, mistake, message in (
        (3, args[3][:, 1:], r"weight_hh must be \[32, 8\], got \[32, 7\]"),
        (3, args[3].double(), "weight_hh must have the input's dtype"),
        (6, torch.ones(4, 8), r"weight_hh must be \[32, 4\], got \[32, 8\]"),
        (7, torch.ones(79), r"gains must be \[80\], got \[79\]"),
        (8, torch.tensor([3, 4]), "batch_sizes must not increase"),
        (9, torch.zeros(6, dtype=torch.bool), r"resets must be bool \[7\] on the input's device"),
        (
            9,
            torch.zeros(7, dtype=torch.int64),
            r"resets must be bool \[7\] on the input's device, got Long \[7\] on cpu",
        ),
        (12, [2.0, 0.0], r"zoneout must be in \[0, 1\], got 2"),
        (0, args[0].to(torch.int32), "take floating-point tensors|must have the input's dtype"),
    ):
        with pytest.raises(RuntimeError, match=f"recurrence: .*({message})"):
            run(*args[:place], mistake, *args[place + 1 :], False)


def test_a_schedule_that_cannot_run_says_why():
    run = emulated.operators()
    layer = random_layer("lstm", [3, 3, 1], 6, 8)  # float64
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]
    run.use_cuda_schedule.default("cluster")
    try:
        with pytest.raises(RuntimeError, match="the cluster schedule was asked for: it has no"):
            run.recurrence.default(*args, False)
        with pytest.raises(ValueError, match="schedule must be auto, cluster, grid or step"):
            run.use_cuda_schedule.default("fast")
    finally:
        run.use_cuda_schedule.default("auto")


@pytest.mark.parametrize("schedule", PERSISTENT)
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_plan_knows_the_kernels_and_their_layouts(device, cell, dtype, schedule):
    kernels = device.persistent_kernels(schedule, cell, dtype)
    for backward in (False, True):
        for batch, hidden in ((20, 200), (3, 33), (64, 256), (20, 650), (20, 5000)):
            found = _C.plan(
                cell,
                str(dtype)[6:],
                35,
                batch,
                hidden,
                backward=backward,
                schedule=schedule,
                capability=90,
                processors=132,
                shared_memory=232448,
            )
            why = found["refused"].get(schedule, "")
            assert (kernels is None) == ("kernels" in why), why
            if not found["schedule"]:
                continue
            layout = Layout()
            clusters = schedule == "cluster" or found["share"] > 1
            processors = 8 * 16 if clusters else 132  # those that clusters reach
            size = found["cluster"] if schedule == "cluster" else processors
            sizes = (batch, hidden, size, found["share"], processors, 232448)
            args = (backward, *sizes, ctypes.byref(layout))
            assert kernels.layout(*args)
            names = {"bytes": "workspace"}
            for name, _ in Layout._fields_:
                assert getattr(layout, name) == found[names.get(name, name)], name


def test_barriers():
    run = emulated.operators().cuda_barriers.default
    space = torch.full((1,), -1, dtype=torch.int32)
    run(space, 8, 2)
    assert space.item() == -1
    run(space, 0, 2)
    assert space.item() == 2 * 132  # every block, twice
    with pytest.raises(RuntimeError, match="cuda_barriers: cluster must be in .*, got 17 and 1"):
        run(space, 17, 1)
    with pytest.raises(RuntimeError, match="cuda_barriers: space must be int32"):
        run(space.float(), 8, 1)
