"""Tuning: measured where it runs, and no layer left slower than it was."""

import copy
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import d2lops
from d2lops import tuning
from d2lops.report import Report
from tests.converted import calls
from tests.device import cpu_only, normal
from tests.isolated import run_python

IMAGE = normal(2, 3, 12, 14)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.conv = nn.Conv2d(4, 4, 3)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.linear = nn.Linear(5, 7)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(self.features(x))), 2)
        x = self.drop(self.again(F.dropout(x, 0.5, self.training, True)))
        return self.linear(x[..., :5])


MEASURED = {
    "features.0": "corr2d",
    "conv": "corr2d+relu",
    "again": "corr2d",
    "drop": "dropout",
    "linear": "linear",
    ":max_pool2d": "max_pool2d",
    ":dropout": "dropout",
}


class TestTuning:
    def test_every_layer_and_call_is_measured(self) -> None:
        model = Net()
        report = d2lops.convert(model, tune=IMAGE)
        times = {row.name: row.times for row in report.rows}
        assert {name for name, row in times.items() if row} == MEASURED.keys()
        for row in report.rows:
            if row.times:
                (ours, our), (theirs, their) = row.times.items()
                assert (ours, theirs) == (d2lops.backends.available(IMAGE.device.type)[0], "torch")
                assert all(0 < seconds < 10 for seconds in (*our, *their))
                assert (row.now == "d2lops") == (our[1] < their[1])
        assert times["unused"] == {} and type(model.unused) is d2lops.nn.Linear

    @pytest.mark.parametrize("training", (True, False))
    def test_the_faster_one_is_kept(self, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
        """Of those timed in turn, every other; in training by forward and backward."""
        turns = iter(range(100))

        def measured(self: object, site: object) -> tuning.Times:
            ours, theirs = ((1.0, 2.0), (2.0, 1.0))[:: 1 if next(turns) % 2 else -1]
            return {"cpp": ours, "torch": theirs}

        monkeypatch.setattr(tuning._Measurement, "_measured", measured)
        model = Net().train(training)
        report = d2lops.convert(model, tune=IMAGE)
        kept = {row.name: row.now for row in report.rows if row.times}
        assert {*kept.values()} == {"d2lops", "torch"}
        for row in report.rows:
            if row.times:
                assert (row.now == "d2lops") == (row.times["cpp"][training] < 1.5)
        expected = [call for name, call in MEASURED.items() if kept[name] == "d2lops"]
        if not training:
            expected = [call for call in expected if call != "dropout"]
        assert sorted(calls(model, IMAGE)) == sorted(expected)

    def test_the_model_is_as_it_was(self) -> None:
        model = Net()
        state = copy.deepcopy(model.state_dict())
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        inputs = IMAGE.clone()
        d2lops.convert(model, tune=inputs)
        assert torch.equal(torch.rand(4), expected) and torch.equal(inputs, IMAGE)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(
            p.grad is None and not m._forward_pre_hooks
            for m in model.modules()
            for p in m.parameters()
        )

    def test_reports_are_applied_again(self, tmp_path: Path) -> None:
        report = d2lops.convert(Net(), tune=IMAGE)
        report.rows[0].now, report.rows[0].note = "torch", "is faster"
        next(row for row in report.rows if row.name == ":max_pool2d").now = "torch"
        report.save(tmp_path / "report.json")
        assert Report.load(tmp_path / "report.json") == report
        for tune in (report, tmp_path / "report.json", str(tmp_path / "report.json")):
            model = Net()
            again = d2lops.convert(model, tune=tune)
            assert {(r.name, r.now) for r in again.rows} == {(r.name, r.now) for r in report.rows}
            assert type(model.features[0]) is nn.Conv2d
            assert "max_pool2d" not in calls(model, IMAGE)

    def test_kinds_of_inputs(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(14, 3)

            def forward(self, x: Tensor, scale: Tensor) -> Tensor:
                return self.linear(x) * scale

        for inputs in ((IMAGE, torch.ones(1)), {"scale": torch.ones(1), "x": IMAGE}):
            (row,) = d2lops.convert(Two(), tune=inputs).rows
            assert row.times

    def test_lazy_models_stay_lazy(self) -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        report = d2lops.convert(model, tune=IMAGE)
        assert all(row.times for row in report.rows) and model[0].has_uninitialized_params()
        assert model(IMAGE).shape == (2, 2)

    def test_what_is_alike_is_measured_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        measured = []

        def once(self: object, site: object) -> tuning.Times:
            measured.append(site.name)
            return {"cpp": (1.0, 1.0), "torch": (2.0, 2.0)}

        monkeypatch.setattr(tuning._Measurement, "_measured", once)
        layers = [nn.Linear(14, 14, bias=index < 3) for index in range(4)]
        report = d2lops.convert(nn.Sequential(*layers), tune=IMAGE)
        assert measured == ["0", "1", "3"]  # the first one's input needs no gradient
        assert all(row.times for row in report.rows)
        assert "1,000,000 / 1,000,000" in str(report)

    def test_functions_are_told_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By name where their arguments are alike, and by module where their names are."""

        class Pools(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.pools = Pools()

            def forward(self, x: Tensor) -> Tensor:
                return F.max_pool2d(self.pools(x), 3)

        measured = []

        def slower_within(self: object, site: object) -> tuning.Times:
            measured.append(site.name)
            ours = 3.0 if site.name == "pools:max_pool2d" else 1.0
            return {"cpp": (ours, ours), "torch": (2.0, 2.0)}

        monkeypatch.setattr(tuning._Measurement, "_measured", slower_within)
        model = Outer()
        report = d2lops.convert(model, tune=IMAGE)
        assert measured == ["pools:max_pool2d", "pools:avg_pool2d", ":max_pool2d"]
        assert {row.name: row.now for row in report.rows} == {
            ":max_pool2d": "d2lops",
            "pools:max_pool2d": "torch",
            "pools:avg_pool2d": "d2lops",
        }
        assert calls(model, IMAGE) == ["avg_pool2d", "max_pool2d"]

    @cpu_only
    def test_needs_no_tqdm(self) -> None:
        """Without it, torch has a smaller one of its own."""
        script = (
            "import sys; sys.modules['tqdm'] = sys.modules['tqdm.auto'] = None\n"
            "import torch, d2lops\n"
            "print(d2lops.convert(torch.nn.Linear(3, 2), tune=torch.ones(1, 3)).rows[0].times)"
        )
        result = run_python("-c", script)
        assert result.returncode == 0 and "torch" in result.stdout, result.stderr

    def test_the_faster_of_two_is_found(self) -> None:
        seconds = tuning._seconds(
            {"cpp": lambda: time.sleep(1e-3), "torch": lambda: time.sleep(3e-3)}
        )
        assert 5e-4 < seconds["cpp"] < seconds["torch"]
