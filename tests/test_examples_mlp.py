"""Linear models, MLPs and modules of one's own do what the book says, with either `nn`.

What each script reaches, it checks itself: test_examples.py runs them all.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.nn import functional as F

import d2lops.nn
from examples import (
    book,
    custom_layers,
    dropout,
    linear_regression,
    modules,
    numerical_stability,
    parameters,
    saving,
    softmax_regression,
    weight_decay,
)
from tests.device import cpu_only, normal

pytestmark = [cpu_only, pytest.mark.usefixtures("one_thread")]
either_nn = pytest.mark.parametrize("nn", book.LAYERS.values(), ids=list(book.LAYERS))


class TestLinearRegression:
    def test_least_squares_is_scikit_learns(self) -> None:
        made = linear_regression.synthetic()
        theirs = LinearRegression().fit(made.inputs, made.targets).predict(made.inputs)
        ours = linear_regression.least_squares(made)
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-3, atol=1e-3)

    def test_both_descend_alike(self) -> None:
        made = linear_regression.synthetic()
        theirs, ours = (
            linear_regression.from_scratch(nn, made, epochs=1) for nn in book.LAYERS.values()
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        assert ours[2][-1] < ours[2][0]


class TestSoftmaxRegression:
    def test_softmax_and_cross_entropy_are_torchs(self) -> None:
        logits, labels = 5 * normal(7, 10), torch.arange(7)
        probabilities = softmax_regression.softmax(logits)
        torch.testing.assert_close(probabilities, logits.softmax(dim=1))
        torch.testing.assert_close(
            softmax_regression.cross_entropy(probabilities, labels),
            F.cross_entropy(logits, labels),
        )

    def test_softmax_does_not_overflow(self) -> None:
        probabilities = softmax_regression.softmax(torch.tensor([[1000.0, 0.0], [-1000.0, -1000]]))
        torch.testing.assert_close(probabilities, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))

    def test_picture_has_each_class_in_its_place(self) -> None:
        weight = torch.arange(10.0).repeat_interleave(9).reshape(10, 9)
        picture = softmax_regression.side_by_side(weight, 3)
        assert picture.shape == (10, 25)
        for digit in range(10):
            row, column = divmod(digit, 5)
            within = picture[5 * row + 1 : 5 * row + 4, 5 * column + 1 : 5 * column + 4]
            assert (within == digit).all()


class TestDropout:
    def test_probabilities_are_the_books(self) -> None:
        network = dropout.mlp(*dropout.DROPOUT["with dropout"])(d2lops.nn)
        layers = [layer for layer in network if isinstance(layer, d2lops.nn.Dropout)]
        assert [layer.p for layer in layers] == [0.2, 0.5]

    def test_without_it_both_learn_the_same(self) -> None:
        digits = book.digits().first(64, 100)
        twins = book.twins(dropout.mlp(0, 0), digits.inputs[:1])
        theirs, ours = (dropout.learn(network, digits, epochs=3) for network in twins.values())
        assert ours == pytest.approx(theirs, rel=1e-3)
        assert ours[-1] < ours[0]

    def test_with_it_both_predict_the_same(self) -> None:
        digits = book.digits().first(64, 100)
        theirs, ours = book.twins(dropout.mlp(0.2, 0.5), digits.inputs[:1]).values()
        predicted = book.predict(ours, digits.inputs)
        torch.testing.assert_close(predicted, book.predict(theirs, digits.inputs))
        ours.train()
        assert not torch.allclose(ours(digits.inputs), predicted)


class TestWeightDecay:
    @pytest.mark.parametrize("train", [weight_decay.from_scratch, weight_decay.concise])
    @either_nn
    def test_weight_without_gradient_decays_and_bias_stays(
        self, nn: ModuleType, train: Callable
    ) -> None:
        model = nn.Linear(3, 1)
        weight, bias = (parameter.detach().clone() for parameter in model.parameters())
        nothing, always = torch.zeros(20, 3), bias.expand(20, 1)
        train(model, book.Data(nothing, always, nothing, always), decay=3.0, epochs=2)
        steps = 2 * 20 // weight_decay.BATCH
        shrunk = (1 - 3 * weight_decay.LEARNING_RATE) ** steps
        torch.testing.assert_close(model.weight, shrunk * weight)
        torch.testing.assert_close(model.bias, bias)

    def test_both_learn_the_same(self) -> None:
        examples = weight_decay.wide()
        twins = book.twins(weight_decay.linear_model, examples.inputs)
        theirs, ours = (
            weight_decay.from_scratch(network, examples, decay=3.0, epochs=3)
            for network in twins.values()
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        assert ours[1] == sorted(ours[1], reverse=True)


class TestNumericalStability:
    @pytest.mark.parametrize("case", numerical_stability.CASES)
    def test_both_have_the_same_gradients(self, case: str) -> None:
        activation, draw, *_ = numerical_stability.CASES[case]
        digits = book.digits()
        inputs, labels = digits.inputs[:64].flatten(1), digits.targets[:64]
        theirs, ours = (
            numerical_stability.gradient_norms(
                numerical_stability.deep(nn, activation, draw), inputs, labels
            )
            for nn in book.LAYERS.values()
        )
        assert len(ours) == numerical_stability.DEPTH and min(ours) > 0
        # What makes gradients 10⁹ times as large does the same to float64's rounding errors.
        assert ours == pytest.approx(theirs, rel=1e-3)


class TestModules:
    @either_nn
    def test_sequence_goes_through_a_layer_each_time_that_it_comes(self, nn: ModuleType) -> None:
        layer, x = nn.Linear(5, 5), normal(2, 5)
        torch.testing.assert_close(modules.MySequential(layer, layer)(x), layer(layer(x)))

    @either_nn
    def test_nested_module_is_its_layers_in_turn(self, nn: ModuleType) -> None:
        x = normal(2, 64)
        nested = modules.NestMLP(nn)
        y = nested(x)
        first, second, last = (part for part in nested.modules() if type(part) is nn.Linear)
        torch.testing.assert_close(y, last(second(first(x).relu()).relu()))

    @either_nn
    def test_fixed_hidden_layer_stays_and_the_others_learn(self, nn: ModuleType) -> None:
        module, x = modules.FixedHiddenMLP(nn), 10 * normal(3, 20)
        y = module(x)
        constant = module.constant.clone()
        assert {name for name, _ in module.named_parameters()} == {"linear.weight", "linear.bias"}
        assert "constant" in module.state_dict()
        y.sum().backward()
        assert module.linear.weight.grad.abs().min() > 0
        torch.optim.SGD(module.parameters(), 0.1).step()
        assert torch.equal(module.constant, constant)

    @either_nn
    def test_fixed_hidden_layer_halves_until_small(self, nn: ModuleType) -> None:
        module, x = modules.FixedHiddenMLP(nn), 10 * normal(3, 20)
        y = module(x)
        hidden = (module.linear(x) @ module.constant.T + 1).relu()
        unhalved = module.linear(hidden)
        halvings = (unhalved.sum(dim=1, keepdim=True) / y).log2()
        assert halvings.min() >= 1
        torch.testing.assert_close(halvings, halvings[0].round().expand(3, 1), rtol=0, atol=1e-3)
        size = unhalved.abs().sum() / len(x) / 2 ** halvings[0].round()
        assert 0.5 < size <= 1


class TestCustomLayers:
    def test_centered_layer_has_mean_zero(self) -> None:
        y = custom_layers.CenteredLayer()(5 + normal(4, 8))
        torch.testing.assert_close(y.mean(), torch.tensor(0.0))

    @either_nn
    def test_my_linear_is_its_formula(self, nn: ModuleType) -> None:
        layer, x = custom_layers.MyLinear(nn, 5, 3), normal(4, 5)
        torch.testing.assert_close(layer(x), (x @ layer.weight + layer.bias).relu())

    @either_nn
    def test_tensor_reduction_is_its_formula(self, nn: ModuleType) -> None:
        layer, x = custom_layers.TensorReduction(nn, 5, 3), normal(4, 5)
        formula = torch.einsum("ijk,bi,bj->bk", layer.weight, x, x)
        torch.testing.assert_close(layer(x), formula)

    @either_nn
    @pytest.mark.parametrize("inputs", [8, 9, 64])
    def test_half_fourier_is_the_leading_half(self, nn: ModuleType, inputs: int) -> None:
        x = normal(4, inputs)
        leading = torch.fft.fft(x)[:, : inputs // 2]
        y = custom_layers.HalfFourier(nn, inputs)(x)
        torch.testing.assert_close(
            y, torch.cat([leading.real, leading.imag], dim=1), rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("layer", custom_layers.NETWORKS)
    def test_gradients_flow_and_agree(self, layer: str) -> None:
        digits = book.digits()
        gradients = []
        for network in book.twins(custom_layers.NETWORKS[layer], digits.inputs[:1]).values():
            x = digits.inputs[:32].clone().requires_grad_()
            F.cross_entropy(network(x), digits.targets[:32]).backward()
            gradients.append([x.grad, *(parameter.grad for parameter in network.parameters())])
        theirs, ours = gradients
        assert all(gradient.abs().max() > 0 for gradient in ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


class TestParameters:
    @either_nn
    def test_lazy_layers_become_those_of_their_module(self, nn: ModuleType) -> None:
        network = parameters.tied_mlp(nn)
        parameters.lazy(network, torch.zeros(1, 1, 8, 8), "")
        assert {type(network[index]) for index in (1, 3, 9)} == {nn.Linear}

    def test_a_layer_that_is_not_lazy_is_found_out(self) -> None:
        network = parameters.tied_mlp(d2lops.nn)
        network(torch.zeros(1, 1, 8, 8))
        with pytest.raises(book.NotReachedError, match="before it came"):
            parameters.lazy(network, torch.zeros(1, 1, 8, 8), "d2lops.nn")

    @either_nn
    def test_tied_gradient_is_the_sum_of_its_uses(self, nn: ModuleType) -> None:
        x = normal(4, 64)
        tied = parameters.tied_mlp(nn)
        tied(x)
        untied = nn.Sequential(nn.Flatten())
        for _ in range(4):
            untied.extend([nn.Linear(64, 64), nn.ReLU()])
        untied.append(nn.Linear(64, 10))
        untied.load_state_dict(tied.state_dict())
        for network in (tied, untied):
            network(x).square().sum().backward()
        assert parameters.tied(tied) and not parameters.tied(untied)
        torch.testing.assert_close(
            tied[3].weight.grad,
            sum(untied[index].weight.grad for index in (3, 5, 7)),
            rtol=1e-4,
            atol=1e-4,
        )
        assert parameters.count(untied) - parameters.count(tied) == 2 * (64 * 64 + 64)

    @either_nn
    def test_initialisation_is_the_books(self, nn: ModuleType) -> None:
        network = parameters.tied_mlp(nn)
        network(normal(1, 64))
        torch.manual_seed(0)
        network.apply(parameters.my_init)
        drawn = network[3].weight.detach().abs()
        assert 0.45 < (drawn == 0).float().mean() < 0.55
        assert drawn[drawn > 0].min() >= 5 and drawn.max() <= 10
        parameters.one_by_one(network)
        assert (network[9].weight == 42).all()
        assert 0 < network[1].weight.abs().max() <= (6 / 128) ** 0.5


class TestSaving:
    def test_relay_goes_on_where_the_file_ends(self, tmp_path: Path) -> None:
        assert set(saving.RELAY) == set(book.LAYERS)
        digits = book.digits().first(64, 100)
        relay = saving.race(("torch.nn", "d2lops.nn"), tmp_path / "relay.pt", digits, epochs=2)
        alone = saving.race(("d2lops.nn",), tmp_path / "alone.pt", digits, epochs=2)
        assert relay[:2] == pytest.approx(alone, rel=1e-4)
        assert relay == sorted(relay, reverse=True)
        optimizer = torch.load(tmp_path / "relay.pt")["optimizer"]
        assert optimizer["state"][0]["step"] == 4 * len(digits.targets) / book.BATCH

    def test_either_reads_what_either_wrote(self, tmp_path: Path) -> None:
        digits = book.digits().first(64, 100)
        for writer in book.LAYERS:
            saving.race((writer,), tmp_path / writer, digits, epochs=1)
            theirs, ours = (
                saving.predictions(nn, tmp_path / writer, digits.test_inputs)
                for nn in book.LAYERS.values()
            )
            torch.testing.assert_close(ours, theirs)


HOUSES = """\
Id,MSSubClass,MSZoning,LotFrontage,LotArea,Street,Alley,LotShape,YrSold,SalePrice
1,60,RL,65,8450,Pave,NA,Reg,2008,208500
2,20,RL,80,9600,Pave,NA,Reg,2007,181500
3,60,RM,NA,11250,Pave,Grvl,IR1,2008,223500
4,70,RL,60,9550,Pave,Pave,IR1,2006,140000
"""


class TestHousePrices:
    """Needs pandas, which none of the other scripts does."""

    @pytest.fixture
    def script(self) -> ModuleType:
        pytest.importorskip("pandas")
        from examples import house_prices

        return house_prices

    def test_kaggles_file_becomes_numbers(self, script: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text(HOUSES)
        features, prices = script.houses(tmp_path)
        assert prices.tolist() == [208500, 181500, 223500, 140000]
        inputs = script.preprocess(features)
        numbers, indicators = inputs[:, :4], inputs[:, 4:]
        torch.testing.assert_close(numbers.mean(dim=0), torch.zeros(4))
        torch.testing.assert_close(numbers[:, [0, 2, 3]].std(dim=0), torch.ones(3))
        assert numbers[2, 1] == 0, "a missing number is the mean"
        # RL, RM, none; Pave, none; Grvl, Pave, none; IR1, Reg, none.
        assert indicators.tolist() == [
            [1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0],
            [1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0],
            [0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0],
            [1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0],
        ]

    def test_every_row_validates_once(self, script: ModuleType) -> None:
        rows = torch.arange(23.0).unsqueeze(1)
        parts = script.folds(rows, rows)
        validated = torch.cat([fold.test_inputs for fold in parts])
        assert validated.flatten().sort().values.tolist() == rows.flatten().tolist()
        for fold in parts:
            assert not set(fold.inputs.flatten().tolist()) & set(
                fold.test_inputs.flatten().tolist()
            )
            torch.testing.assert_close(fold.targets, fold.inputs - fold.inputs.mean())
            torch.testing.assert_close(fold.test_targets, fold.test_inputs - fold.inputs.mean())

    def test_error_is_that_of_the_logarithms(self, script: ModuleType) -> None:
        prices = torch.tensor([[100.0], [200.0]])

        class TwiceThePrice(torch.nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                return (2 * inputs).log()

        network = TwiceThePrice()
        assert script.log_rmse(network, prices, prices.log()) == pytest.approx(0.6931, rel=1e-4)

    def test_prices_are_learned_from_a_file(self, script: ModuleType, tmp_path: Path) -> None:
        header, *rows = HOUSES.splitlines()
        areas = (8000 + 3000 * normal(60)).clamp(1000).round().int().tolist()
        lines = [
            f"{number},20,RL,NA,{area},Pave,NA,Reg,2008,{20 * area + 10000}"
            for number, area in enumerate(areas)
        ]
        (tmp_path / "train.csv").write_text("\n".join([header, *rows, *lines]))
        figures = script.main(quick=True, data=tmp_path, pictures=tmp_path)
        assert set(figures) == set(book.LAYERS)
