"""The benchmark suite measures what it says it does, and does not believe wrong results."""

import csv
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import __main__ as main
from benchmarks import corr2d, dropout, linear_relu, report
from benchmarks.case import Case, Work, own
from benchmarks.environment import environment
from benchmarks.limits import copy_seconds, flops_per_second, least_seconds
from benchmarks.measure import FORWARD, MODES, TRAINING, Row, measure


def third(x: Tensor) -> Tensor:
    return x / 3


def tiny(ours: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Case:
    work = Work(bytes=2 * 50 * dtype.itemsize)
    return Case(
        operator="dropout",
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
    "wrong", [torch.zeros_like, remembering, lambda x: third(x) + 1e-3], ids=["0", "cached", "off"]
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
    for mode in MODES:
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


def test_files(tmp_path: Path) -> None:
    console = Console(record=True, width=150)
    rows = main.run([tiny(third)], console)
    assert [row.mode for row in rows] == list(MODES)
    report.print_table(console, rows)
    assert "a third" in console.export_text()
    json_file, csv_file, png_file = report.write(tmp_path, environment(), main.limits(), rows)
    results = json.loads(json_file.read_text())
    assert set(results) == {"environment", "limits", "geometric_means", "rows"}
    assert {"processor", "cores", "threads", "torch", "d2lops", "commit", "library"} <= set(
        results["environment"]
    )
    assert [Row(**row) for row in results["rows"]] == rows
    with csv_file.open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [field.name for field in fields(Row)]
    assert [float(line["ours_seconds"]) for line in lines] == [row.ours_seconds for row in rows]
    assert png_file.read_bytes().startswith(b"\x89PNG")


def test_geometric_means_are_per_operator_and_mode() -> None:
    row = measure(tiny(third), FORWARD)
    rows = [replace(row, speedup=2.0), replace(row, speedup=8.0), replace(row, mode=TRAINING)]
    means = report.geometric_means([*rows, replace(row, operator="pool2d", speedup=0.5)])
    assert means["dropout"] == {FORWARD: pytest.approx(4), TRAINING: pytest.approx(row.speedup)}
    assert means["pool2d"] == {FORWARD: pytest.approx(0.5)}


def test_sets_of_cases() -> None:
    everything = main.cases(list(main.OPERATORS), quick=False)
    quick = main.cases(list(main.OPERATORS), quick=True)
    assert {case.operator for case in quick} == set(main.OPERATORS)
    assert 14 <= len(quick) < len(everything)
    keys = [(case.operator, case.name, case.dtype, case.layout) for case in everything]
    assert len(set(keys)) == len(keys)
