"""The benchmark suite measures what it says it does, and does not believe wrong results."""

import contextlib
import csv
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

import d2lops
from benchmarks import __main__ as main
from benchmarks import (
    clock,
    converted,
    corr2d,
    dropout,
    linear_relu,
    network,
    pool2d,
    report,
    returned,
    rival,
)
from benchmarks.case import FORWARD, STEP, TRAINING, Case, Work, of_family, own
from benchmarks.compare import compare
from benchmarks.environment import environment
from benchmarks.kept import kept_bytes
from benchmarks.limits import copy_seconds, flops_per_second, least_seconds
from benchmarks.measure import Row, measure
from benchmarks.summary import families, markdown, not_measured
from examples import networks
from examples.lenet import lenet
from tests.device import cpu_only

pytestmark = cpu_only


def third(x: Tensor) -> Tensor:
    return x / 3


def tiny(ours: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Case:
    work = Work(bytes=2 * 50 * dtype.itemsize)
    return Case(
        operator="dropout",
        family="thirds",
        name="a third",
        shapes=((5, 10),),
        ours=ours,
        theirs=third,
        forward=work,
        backward=work,
        dtype=dtype,
    )


def test_error_is_the_largest_of_ours_over_the_largest_of_torchs() -> None:
    seen = []

    def less_exact(x: Tensor) -> Tensor:
        seen.append(x)
        return x / 3 * (1 + 2**-20)

    row = measure(tiny(less_exact), FORWARD)
    x = seen[-1]
    ours, theirs = ((f(x).double() - x.double() / 3).abs().max() for f in (less_exact, third))
    assert (row.ours_error, row.torch_error) == (ours, theirs)
    assert row.error == ours / theirs > 2


def test_row_is_consistent() -> None:
    row = measure(tiny(third), TRAINING)
    assert row.speedup == row.torch_seconds / row.ours_seconds
    assert (row.limited_by, row.rate) == ("bytes", 2 * 2 * 50 * 4 / row.ours_seconds)
    assert row.of_limit == copy_seconds(2 * 2 * 50 * 4) / row.ours_seconds
    assert row.error == 1
    assert (row.dtype, row.layout, row.threads) == (
        "float32",
        "contiguous",
        torch.get_num_threads(),
    )


def test_float64_has_no_reference() -> None:
    row = measure(tiny(third, torch.float64), FORWARD)
    assert (row.ours_error, row.torch_error, row.error) == (None, None, None)


remembered: list[Tensor] = []


def remembering(x: Tensor) -> Tensor:
    remembered.append(third(x))
    return remembered[0]


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros_like, torch.empty_like, remembering, lambda x: third(x) + 1e-3],
    ids=["0", "not written", "cached", "off"],
)
def test_wrong_output_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError, match="dropout, a third: a result is wrong"):
        measure(tiny(wrong), FORWARD)


def test_wrong_gradient_is_refused() -> None:
    with pytest.raises(AssertionError, match="a result is wrong"):
        measure(tiny(lambda x: third(x).detach() + 0 * x), TRAINING)


def test_torch_is_not_measured_as_ours() -> None:
    assert own("dropout") is not torch.nn.functional.dropout
    with pytest.raises(NotImplementedError, match="no relu of its own"):
        own("relu")


def test_dropout_is_compared_with_its_own_mask() -> None:
    case = dropout._case((100, 100), p=0.25)
    for mode in case.modes:
        row = measure(case, mode)
        assert max(row.ours_error, row.torch_error) < 1e-6
    with pytest.raises(AssertionError, match="kept 0 of 10000"):
        measure(replace(case, ours=torch.zeros_like), FORWARD)


def test_relu_is_compared_with_its_own_sign() -> None:
    exact = linear_relu.masked_by_relu(lambda z: z)
    z = torch.tensor([1.0, -1e-9, 1e-9, -1.0], dtype=torch.float64, requires_grad=True)
    output = torch.tensor([1.0, 1e-9, 0.0, 0.0])  # two signs differ, by rounding
    value = exact(output)(z)
    assert value.tolist() == [1, -1e-9, 1e-9, 0]
    assert torch.autograd.grad(value.sum(), z)[0].tolist() == [1, 1, 0, 0]


def test_work_is_counted_by_hand() -> None:
    case = corr2d._case((2, 4, 5, 5), 6, 3, groups=2)
    image, weight, output = 2 * 4 * 5 * 5, 6 * 2 * 3 * 3, 2 * 6 * 3 * 3
    flops = 2 * output * 2 * 3 * 3
    assert case.forward == Work(4 * (image + weight + 6 + output), flops)
    assert case.backward == Work(4 * (2 * image + 2 * weight + 6 + output), 2 * flops)


def test_limits() -> None:
    assert 0 < copy_seconds(2**10) < copy_seconds(2**26)
    assert min(flops_per_second(torch.float32), flops_per_second(torch.float64)) > 0
    assert flops_per_second(torch.bfloat16) == flops_per_second(torch.float32)
    assert least_seconds(Work(2**20), torch.float32) == (copy_seconds(2**20), "bytes")
    seconds, limited_by = least_seconds(Work(1, flops=10**12), torch.float32)
    assert (seconds, limited_by) == (10**12 / flops_per_second(torch.float32), "flops")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "compiled", lambda case, mode: (None, "no compiler today"))
    console = Console(record=True, width=150)
    rows, failures = main.run([tiny(third)], console)
    assert not failures
    assert [row.mode for row in rows] == [FORWARD, TRAINING]
    report.print_table(console, rows)
    report.print_families(console, rows)
    text = console.export_text()
    assert "a third" in text and "thirds" in text and "no compiler today" in text
    files = report.write(tmp_path, "results", environment(), main.limits(), rows)
    assert [path.name for path in files] == [f"results.{s}" for s in ("json", "csv", "md", "png")]
    json_file, csv_file, md_file, png_file = files
    results = json.loads(json_file.read_text())
    assert set(results) == {"environment", "limits", "families", "rows"}
    assert {"processor", "cores", "threads", "torch", "d2lops", "commit", "library"} <= set(
        results["environment"]
    )
    assert [Row(**row) for row in results["rows"]] == rows
    with csv_file.open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [field.name for field in fields(Row)]
    assert [float(line["ours_seconds"]) for line in lines] == [row.ours_seconds for row in rows]
    assert md_file.read_text() == markdown(results["families"])
    assert png_file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("error", [RuntimeError("illegal"), KeyboardInterrupt()], ids=str)
def test_what_was_measured_is_not_lost(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(x: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(main, "compiled", lambda case, mode: (None, ""))
    console = Console(record=True, width=150)
    rows, failures = main.run([tiny(third), tiny(fails), tiny(third)], console)
    if isinstance(error, KeyboardInterrupt):
        assert (len(rows), failures) == (2, ["interrupted: not every case was measured"])
    else:
        assert (len(rows), len(failures)) == (4, 2)
        assert failures[0] == "dropout: a third, torch.float32, forward: RuntimeError: illegal"
    assert "dropout: a third, torch.float32, forward: " in console.export_text()


def test_families_have_means_and_worst_cases() -> None:
    row = replace(measure(tiny(third), FORWARD), compiled_speedup=None)
    rows = [
        replace(row, speedup=2.0, case="slow", compiled_speedup=3.0),
        replace(row, speedup=8.0),
        replace(row, mode=TRAINING, speedup=5.0),
        replace(row, family="others", speedup=0.5),
    ]
    found = families(rows)
    assert list(found) == ["thirds", "others"]
    assert found["thirds"][FORWARD]["torch"] == {
        "mean": pytest.approx(4),
        "worst": 2,
        "case": "dropout slow, float32",
        "rows": 2,
    }
    assert found["thirds"][FORWARD]["torch.compile"]["rows"] == 1
    assert list(found["thirds"][TRAINING]) == ["torch"]
    assert found["others"][FORWARD]["torch"]["worst"] == 0.5


def test_markdown() -> None:
    found = {
        "thirds": {
            FORWARD: {"torch": {"mean": 1.204, "worst": 0.5, "rows": 3}},
            TRAINING: {
                "torch": {"mean": 2.04, "worst": 1.96, "rows": 3},
                "torch.compile": {"mean": 12.4, "worst": 9.96, "rows": 1},
            },
        },
        "nets": {STEP: {"torch": {"mean": 1, "worst": 1, "rows": 2}}},
    }
    assert markdown(found).splitlines()[2:] == [
        "| thirds | 3 | 1.20 (0.50) |  | 2.0 (1.96) | 12 (10.0) |",
        "| nets | 2 |  |  | 1.00 (1.00) |  |",
    ]
    found["thirds"][FORWARD]["Triton"] = {"mean": 0.9, "worst": 0.8, "rows": 3}
    assert markdown(found, gpu=True).splitlines()[2:] == [
        "| thirds | 3 | 1.20 (0.50) | 0.90 (0.80) |  | 2.0 (1.96) |  | 12 (10.0) |",
        "| nets | 2 |  |  |  | 1.00 (1.00) |  |  |",
    ]
    lines = not_measured([tiny(third), tiny(third)]).splitlines()
    assert lines[2:] == ["| thirds | 2 |" + " not measured yet |" * 6]


RESULTS = Path(main.__file__).parent / "results"


@pytest.mark.parametrize("stem", ["results", "cuda"])
def test_documents_have_the_numbers_of_the_results(stem: str) -> None:
    results = RESULTS / f"{stem}.json"
    readme = (RESULTS.parents[1] / "README.md").read_text()
    if results.exists():
        table = markdown(json.loads(results.read_text())["families"], gpu=stem == "cuda")
        assert table in readme
    else:
        table = not_measured(main.cases(list(main.OPERATORS), quick=False, device="cuda"))
        assert "On a GPU nothing has been measured yet" in readme
    assert (RESULTS / f"{stem}.md").read_text() == table


def test_four_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    chosen = ["ours"]

    @contextlib.contextmanager
    def backend(name: str) -> Iterator[None]:
        chosen.append(name)
        yield
        chosen.pop()

    def side(name: str) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            called_name = chosen[-1] if name == "ours" else name
            if not called or called[-1] != called_name:
                called.append(called_name)
            return third(x)

        return function

    case = replace(tiny(side("ours")), theirs=side("torch"))
    monkeypatch.setattr(d2lops, "backend", backend)
    row = measure(case, FORWARD, side("compiled"), triton=True)
    assert called.count("triton") >= 9 <= called.count("compiled")
    assert row.triton_speedup == row.torch_seconds / row.triton_seconds
    assert called.count("compiled") >= 9 <= min(called.count("ours"), called.count("torch"))
    assert row.compiled_speedup == row.compiled_seconds / row.ours_seconds
    assert (row.not_compiled, measure(case, FORWARD).compiled_seconds) == ("", None)
    assert (row.no_triton, measure(case, FORWARD).triton_seconds) == ("", None)


def test_compilation_is_over_before_it_is_timed() -> None:
    graphs = []

    class Compiled(Case):
        def compiled(self) -> Callable[[Tensor], Tensor]:
            def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
                graphs.append(graph)
                return graph.forward

            return torch.compile(self.theirs, dynamic=False, backend=backend)

    case = Compiled(**{field.name: getattr(tiny(third), field.name) for field in fields(Case)})
    function, reason = rival.compiled(case, FORWARD)
    assert (len(graphs), reason) == (1, "")
    measure(case, FORWARD, function)
    assert len(graphs) == 1


class Event:
    """A CUDA event on a GPU that takes 1 ms, 2 ms, 3 ms ... for what lies between two of them."""

    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.recorded += 1
        self.place = Event.recorded

    def elapsed_time(self, end: "Event") -> float:
        assert end.place == self.place + 1
        return end.place / 2


def test_gpu_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(clock, "_larger_than_the_cache", lambda: torch.empty(1))
    called = []
    seconds = clock.gpu_clock(called.append, [("a",), ("b",)])
    assert seconds(5) == 0.003
    assert called == ["a", "b", "a", "b", "a"]
    seconds(10**6)
    assert len(called) == 5 + clock.IN_A_ROW


def test_tf32_is_allowed_for_its_cases_alone() -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    seen = []

    def ours(x: Tensor) -> Tensor:
        seen.append([switch.allow_tf32 for switch in switches])
        return third(x) * (1 + 2**-10)  # too far from right for float32

    (case,) = of_family("TF32", replace(tiny(ours), tf32=True))
    row = measure(case, FORWARD)
    assert (row.dtype, row.family) == ("TF32", "TF32")
    assert all(allowed == [True, True] for allowed in seen)
    assert [switch.allow_tf32 for switch in switches] == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cuda"])
    with pytest.raises(SystemExit) as exit:
        main.main()
    assert exit.value.code == 2
    assert "torch sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [True, False], ids=["too long", "fails"])
def test_failed_compilation_has_a_reason(limit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(x: Tensor) -> Tensor:
        if limit:
            time.sleep(60)
        raise ValueError("no such instruction\nand more")

    monkeypatch.setattr(rival, "PATIENCE", 1)
    monkeypatch.setattr(Case, "compiled", lambda case: compiler)
    function, reason = rival.compiled(tiny(third), FORWARD)
    assert function is None
    assert reason == (
        "TimeoutError: compilation took more than 1 s"
        if limit
        else "ValueError: no such instruction"
    )


class Hoarder(torch.autograd.Function):
    """Keeps a tensor where no hook of saved tensors sees it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.hoard = x.to(torch.float64)
        return x / 3

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        return g / 3


def test_kept_memory_is_what_is_there_after_forward() -> None:
    x = torch.randn(5, 10, requires_grad=True)
    assert kept_bytes(third, (x,)) == (0, 50)
    assert kept_bytes(torch.exp, (x,)) == (0, 50)  # its output
    assert kept_bytes(lambda x: x.exp() / 3, (x,)) == (4 * 50, 50)
    assert kept_bytes(Hoarder.apply, (x,)) == (8 * 50, 50)
    weight = torch.randn(3, 10, requires_grad=True)  # is there anyhow, seen from another side too
    assert kept_bytes(lambda x: x @ weight.T, (x,)) == (0, 15)


def test_kept_memory_of_the_operators() -> None:
    """What the documents of the operators promise."""
    expected = {
        dropout._case((100, 100), p=0.5): 8 / 10000,  # the seed
        pool2d._case("max_pool2d", (2, 3, 10, 10), 2): 1,
        pool2d._case("avg_pool2d", (2, 3, 10, 10), 2): 0,
        linear_relu._case(20, 30, 40): 0,
        corr2d._case((2, 4, 9, 9), 6, 3, relu=True): 0,
    }
    for case, nbytes in expected.items():
        row = measure(case, TRAINING)
        assert row.ours_kept / row.outputs == nbytes
        assert row.ours_kept <= row.torch_kept


def test_row_without_kept_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure(tiny(third), FORWARD)
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps([asdict(row)]))

    monkeypatch.setattr(returned.subprocess, "run", run)
    assert returned.rows() == [row]
    assert [command[1:] for command in commands] == [["-m", "benchmarks.returned"]]


def test_training_step_trains_twins() -> None:
    case = network._case("LeNet", lenet, batch=4, size=28)
    row = measure(case, STEP)
    assert row.ours_error < 1e-5
    assert (row.limited_by, row.ours_kept > 0) == ("flops", True)
    case.twins.ours.network.load_state_dict(case.twins.theirs.network.state_dict())
    batch = case.arguments(STEP).inputs
    losses = [[step(*batch).item() for step in (case.ours, case.theirs)] for _ in range(5)]
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert losses[-1] < losses[0]


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many layers of each kind as convert must tell apart, and few channels."""
    model = converted._model

    def small(name: str, **arguments: object) -> torch.nn.Module:
        return model(name, **{**arguments, "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16]})

    monkeypatch.setattr(converted, "_model", small)


@pytest.mark.usefixtures("small_models")
def test_converted_twins_train_and_evaluate() -> None:
    step, evaluation = converted._cases("ResNet", converted.resnet, batch=2, size=32)
    for case, mode in ((step, STEP), (evaluation, FORWARD)):
        row = measure(case, mode)
        assert row.ours_error < 1e-4
        assert row.limited_by == "flops"
        twins = case.twins.ours.network, case.twins.theirs.network
        kinds = [[type(layer) for layer in network.modules()] for network in twins]
        assert (d2lops.nn.Conv2d in kinds[0], torch.nn.Conv2d in kinds[0]) == (True, False)
        assert (d2lops.nn.Conv2d in kinds[1], torch.nn.Conv2d in kinds[1]) == (False, True)
        assert [network.training for network in twins] == [mode == STEP] * 2


@pytest.mark.usefixtures("small_models")
def test_flops_of_models_with_and_without_groups() -> None:
    resnet, regnet = (
        converted._cases("", build, batch=2, size=32)[0].twins
        for build in (converted.resnet, converted.regnet)
    )
    assert resnet.flops() == network.Twins.flops(resnet)
    assert regnet.flops() < network.Twins.flops(regnet)  # torch multiplies by the groups


def test_flops_of_a_training_step_are_counted_by_hand() -> None:
    twins = network.Twins(networks.dropout_mlp, fused=False, images=(3, 1, 28, 28))
    forward = 2 * 3 * (784 * 256 + 256 * 256 + 256 * 10)
    assert twins.flops() == 3 * forward - 2 * 3 * 784 * 256  # the images get no gradient


@pytest.mark.parametrize(
    ("build", "size", "parameters"),
    [
        (networks.dropout_mlp, 28, 784 * 256 + 256 + 256 * 256 + 256 + 2570),
        (networks.alexnet, 224, 46_764_746),
        (networks.vgg11, 224, 128_806_154),
        (networks.nin, 224, 1_992_166),
        (networks.googlenet, 96, 5_977_530),
    ],
)
def test_networks_have_as_many_parameters_fused(
    build: Callable[..., torch.nn.Module], size: int, parameters: int
) -> None:
    with torch.device("meta"):
        built = [build(torch.nn), build(main.d2lops.nn), build(main.d2lops.nn, fused=True)]
        for net in built:
            assert net(torch.empty(2, 1, size, size)).shape == (2, 10)
    sizes = [{name: x.shape for name, x in net.state_dict().items()} for net in built]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sum(shape.numel() for shape in sizes[0].values()) == parameters
    assert any(
        isinstance(layer, main.d2lops.nn.ConvReLU2d | main.d2lops.nn.LinearReLU)
        for layer in built[2].modules()
    )


def results(path: Path, **speedups: float) -> Path:
    """A file of results with a row for each name, of times that spread by 2 %."""
    rows = [
        {
            "operator": "pool2d",
            "case": case,
            "dtype": "float32",
            "layout": "contiguous",
            "mode": FORWARD,
            "ours_seconds": 1 / speedup,
            "speedup": speedup,
            "ours_spread": 0.02,
            "torch_spread": 0.02,
        }
        for case, speedup in speedups.items()
    ]
    path.write_text(json.dumps({"environment": {"processor": path.stem}, "rows": rows}))
    return path


def test_compare_flags_what_is_slower_beyond_noise(tmp_path: Path) -> None:
    console = Console(record=True, width=190)
    old = results(tmp_path / "old.json", gone=1, same=2, noisy=2, slower=2, faster=2)
    new = results(tmp_path / "new.json", same=2, noisy=1.9, slower=1.7, faster=3, added=1)
    assert not compare(old, new, console)
    text = console.export_text()
    lines = {
        line.split("│")[2].strip(): line for line in text.splitlines() if line.startswith("│ p")
    }
    verdicts = {case: line.split("│")[-2].strip() for case, line in lines.items()}
    assert verdicts == {"same": "", "noisy": "", "slower": "slower", "faster": "faster"}
    assert "1.50×" in lines["faster"] and "0.85×" in lines["slower"]
    assert "only in OLD: pool2d · gone" in text and "only in NEW: pool2d · added" in text
    assert "processor differs: old → new" in text
    assert "4 rows: 1 faster, 1 slower" in text


def test_compare_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    old = results(tmp_path / "old" / "results.json", a=2).parent
    new = results(tmp_path / "new.json", a=1)
    for first, second, status in ((old, new, 1), (new, old, 0), (old, old, 0)):
        monkeypatch.setattr("sys.argv", ["benchmarks", "compare", str(first), str(second)])
        with pytest.raises(SystemExit) as exit:
            main.main()
        assert exit.value.code == status


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sets_of_cases(device: str) -> None:
    everything = main.cases(list(main.OPERATORS), quick=False, device=device)
    quick = main.cases(list(main.OPERATORS), quick=True, device=device)
    assert {case.operator for case in quick} == set(main.OPERATORS)
    assert 14 <= len(quick) < len(everything)
    keys = [(case.operator, case.name, case.dtype, case.tf32, case.layout) for case in everything]
    assert len(set(keys)) == len(keys)
