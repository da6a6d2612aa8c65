"""Dropout: its words are Philox's, its mask a function of (seed, index), itself its own adjoint."""

import functools
import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from d2lops import backends, nn
from d2lops import functional as F
from tests import reference
from tests.accuracy import DTYPES, assert_as_accurate_as_torch, differentiates, layouts
from tests.device import DEVICE, INTERPRETED, cpu_only, normal, raw
from tests.isolated import run_python
from tests.memory import available_memory
from tests.threads import bits

SIZES = (0, 1, 3, 4, 5, 7, 17, 63, 64, 65, 257, 1023)
SEED = 42

KNOWN_WORDS = [  # seed, counter, words
    (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (42, 0, "9ceaf053 77f5493b 12bf50ad 5742b3d7"),
    (42, 1, "fcdb2127 53ba6cfd 838f5a6e 744e06fb"),
    (42, 7, "5bbd83b1 68784c85 172067aa 2e6b75b7"),
    (42, 2**32, "42e0b8b3 7dbf5de8 2fe739d4 6aaf03eb"),
    (123456789, 1000, "8ceeaf85 51cc1eda 8f1552d9 da2d0d1d"),
    (2**32 + 5, 1, "11994e07 1d6c76ff 2cd0f7a1 400da3a6"),
    (-1, 2**32 - 1, "c25672de 7c03af71 c1b7863e 1d02bb96"),
]
KNOWN_ANSWERS = [  # counter, key, words: the known-answer tests of Philox's authors
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def kept(size: int, seed: int, p: float) -> Tensor:
    """The mask that the kernel draws."""
    return F.dropout(torch.ones(size), p, seed=seed) != 0


def kept_by_reference(size: int, seed: int, p: float) -> Tensor:
    return torch.tensor([reference.dropout_keeps(e, seed, p) for e in range(size)]).bool()


class TestWords:
    @pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
    def test_reference_is_philox(self, counter: str, key: str, expected: str) -> None:
        assert reference.philox4x32(words(counter), words(key)) == words(expected)

    @pytest.mark.parametrize("seed, counter, expected", KNOWN_WORDS)
    def test_reference_has_the_known_words(self, seed: int, counter: int, expected: str) -> None:
        low_high = (counter & 0xFFFFFFFF, counter >> 32, 0, 0)
        key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        assert reference.philox4x32(low_high, key) == words(expected)

    @pytest.mark.parametrize(
        "seed, counter, expected", [row for row in KNOWN_WORDS if 0 <= row[1] < 2**20]
    )
    def test_kernel_compares_with_exactly_the_known_words(
        self, seed: int, counter: int, expected: str
    ) -> None:
        """Kept at p = word / 2^32, dropped at the next p: so the kernel's word is this one."""
        for lane, word in enumerate(words(expected)):
            element = 4 * counter + lane
            assert kept(element + 1, seed, word / 2**32)[element]
            assert not kept(element + 1, seed, (word + 1) / 2**32)[element]


class TestMask:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    def test_every_size_and_dtype(self, size: int, dtype: torch.dtype) -> None:
        y = F.dropout(torch.ones(size, dtype=dtype), 0.3, seed=SEED)
        assert torch.equal(y != 0, kept_by_reference(size, SEED, 0.3))

    @pytest.mark.parametrize("seed", (0, 1, -1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)))
    def test_every_seed(self, seed: int) -> None:
        expected = kept_by_reference(65, seed, 0.5)
        assert torch.equal(kept(65, seed, 0.5), expected)
        signed = (seed + 2**63) % 2**64 - 2**63
        for shape in ((), (1,), (1, 1)):
            y = F.dropout(torch.ones(65), seed=torch.full(shape, signed))
            assert torch.equal(y != 0, expected)

    @pytest.mark.parametrize("p", (1e-300, 2**-32, 0.1, 1 / 3, 0.5, 0.99, 1 - 2**-32, 1 - 2**-53))
    def test_every_probability(self, p: float) -> None:
        assert torch.equal(kept(1023, SEED, p), kept_by_reference(1023, SEED, p))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", ((2, 3, 5, 7), (3, 17, 1, 33), (1, 1, 1, 1), (2, 0, 3, 4)))
    def test_memory_layout_plays_no_part(self, shape: tuple, dtype: torch.dtype) -> None:
        image = torch.randn(shape).to(dtype)
        expected = F.dropout(image, 0.4, seed=SEED)
        for name, x in layouts(image).items():
            y = F.dropout(x, 0.4, seed=SEED)
            assert torch.equal(y, expected), name

    def test_memory_layout_is_kept(self) -> None:
        for name, x in layouts(torch.randn(2, 3, 5, 7)).items():
            assert F.dropout(x).stride() == torch.empty_like(x).stride(), name

    @pytest.mark.parametrize(
        "view",
        (
            lambda x: x[0, 0, 0, 0],
            lambda x: x[0, 0, 0, ::3],
            lambda x: x[:, 1:, ::2, 5],
            lambda x: x.permute(3, 1, 0, 2),
            lambda x: x[..., :1].expand(-1, -1, -1, 19),
            lambda x: x.unfold(3, 5, 2),  # overlapping
            lambda x: x.T,
        ),
    )
    @pytest.mark.filterwarnings("ignore:The use of `x.T`")
    def test_views(self, view: Callable) -> None:
        x = view(torch.randn(3, 4, 5, 67))
        assert torch.equal(F.dropout(x, seed=SEED), F.dropout(x.contiguous(), seed=SEED))

    def test_lazily_negated_tensor(self) -> None:
        x = torch.randn(33, dtype=torch.complex64).conj().imag
        assert x.is_neg()
        assert torch.equal(F.dropout(x, seed=SEED), F.dropout(x.clone(), seed=SEED))

    @cpu_only
    def test_number_of_threads_plays_no_part(self) -> None:
        # Not a multiple of the work of one thread; rows that two threads share.
        tensors = [torch.randn(100_003), torch.randn(3, 50_021).t(), torch.randn(70_001, 2)[:, 1]]
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            expected = [F.dropout(x, seed=SEED) for x in tensors]
            for count in (2, 3, 8):
                torch.set_num_threads(count)
                for x, y in zip(tensors, expected, strict=True):
                    assert torch.equal(F.dropout(x, seed=SEED), y)
        finally:
            torch.set_num_threads(threads)

    @cpu_only
    @pytest.mark.parametrize("library", backends.CPU_LIBRARIES)
    def test_library_plays_no_part(self, library: str) -> None:
        if backends.missing_features(library):
            pytest.skip(f"this processor lacks {', '.join(backends.missing_features(library))}")
        script = "from tests.test_dropout import fingerprint; print(fingerprint())"
        result = run_python("-c", script, D2LOPS_CPU=library)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == fingerprint()

    def test_beyond_two_to_the_31_elements(self) -> None:
        size = 2**31 + 70
        if available_memory() < 12 * 2**30:
            pytest.skip("needs 12 GiB of free memory")
        x = torch.empty(size, dtype=torch.bfloat16)  # filled only where it is looked at
        ends = [slice(end - 70, end) for end in (2**31, size)]
        for end in ends:
            x[end] = 1
        y = F.dropout(x, seed=SEED)
        for end in ends:
            expected = [reference.dropout_keeps(e, SEED, 0.5) for e in range(end.start, end.stop)]
            assert (y[end] != 0).tolist() == expected


@functools.cache
def fingerprint(device: str = "cpu") -> str:
    """A hash of outputs of every dtype, at sizes and strides that leave every kind of remainder."""
    digest = hashlib.sha256()
    for dtype in DTYPES:
        for size in SIZES:
            x = normal(size, 3).to(device, dtype)
            for view in (x, x.t(), x[:, 1]):
                y = F.dropout(view, 0.3, seed=SEED)
                digest.update(bits(y).cpu().numpy().tobytes())
    return digest.hexdigest()


class TestStatistics:
    """Of a million elements (in the interpreter, fewer); no statistic strays more than five
    standard deviations."""

    SIZE = 2**16 if INTERPRETED else 2**20
    SEEDS = (0, 1, 2**40)
    PROBABILITIES = (0.1, 0.5, 0.8)

    def standard(self, seed: int, p: float) -> Tensor:
        """The mask, shifted and scaled to mean 0 and variance 1."""
        q = 1 - p
        return (kept(self.SIZE, seed, p).double() - q) / math.sqrt(p * q)

    @pytest.mark.parametrize("p", PROBABILITIES)
    @pytest.mark.parametrize("seed", SEEDS)
    def test_kept_fraction(self, seed: int, p: float) -> None:
        standard = self.standard(seed, p)
        for period in (1, 4, 64):  # all; each word of the four; each place in a block of the kernel
            lanes = standard.view(-1, period)
            assert (lanes.sum(0) / math.sqrt(len(lanes))).abs().max() < 5

    @pytest.mark.parametrize("p", PROBABILITIES)
    @pytest.mark.parametrize("seed", SEEDS)
    def test_neighbours_are_independent(self, seed: int, p: float) -> None:
        standard = self.standard(seed, p)
        for distance in (1, 2, 3, 4, 5, 8, 16, 32, 64, 224, 1024):
            products = standard[distance:] * standard[:-distance]
            assert abs(products.sum()) < 5 * math.sqrt(len(products))

    @pytest.mark.parametrize("p", PROBABILITIES)
    def test_seeds_are_independent(self, p: float) -> None:
        for one, other in ((0, 1), (1, 2), (1, 2**32 + 1), (5, -5)):
            products = self.standard(one, p) * self.standard(other, p)
            assert abs(products.sum()) < 5 * math.sqrt(len(products))

    @pytest.mark.parametrize("p", PROBABILITIES)
    @pytest.mark.parametrize("seed", SEEDS)
    def test_runs_are_geometric(self, seed: int, p: float) -> None:
        """Chi-square of the lengths of runs of kept elements: P(length = k) = q^(k - 1) p."""
        dropped = torch.nonzero(~kept(self.SIZE, seed, p)).flatten()
        lengths = dropped.diff() - 1
        lengths = lengths[lengths > 0]
        longest = next(k for k in range(1, 1000) if len(lengths) * (1 - p) ** k < 20)
        probabilities = [(1 - p) ** (k - 1) * p for k in range(1, longest + 1)]
        probabilities.append(1 - sum(probabilities))
        counts = torch.bincount(lengths.clamp(max=longest + 1))[1:].double()
        expected = len(lengths) * torch.tensor(probabilities, dtype=torch.float64)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - longest) < 5 * math.sqrt(2 * longest)


class TestSeeds:
    def test_manual_seed_fixes_the_mask(self) -> None:
        x = torch.ones(1000)
        torch.manual_seed(7)
        first, second = F.dropout(x), F.dropout(x)
        torch.manual_seed(7)
        assert torch.equal(F.dropout(x), first)
        assert torch.equal(F.dropout(x), second)
        assert not torch.equal(first, second)

    def test_a_given_seed_leaves_the_generator_alone(self) -> None:
        state = torch.cuda.get_rng_state if DEVICE.type == "cuda" else torch.get_rng_state
        before = state()
        F.dropout(torch.ones(9), seed=SEED)
        F.dropout(torch.ones(9), training=False)
        assert torch.equal(state(), before)


class TestValues:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("p", (0.1, 0.5, 0.9))
    @pytest.mark.parametrize("shape", ((), (1,), (7, 17), (2, 3, 5, 7), (0, 5)))
    def test_accuracy(self, shape: tuple, p: float, dtype: torch.dtype) -> None:
        x = torch.randn(shape).to(dtype)
        mask = kept_by_reference(x.numel(), SEED, p).reshape(shape)
        assert_as_accurate_as_torch(
            lambda x: F.dropout(x, p, seed=SEED), lambda x: x * mask / (1 - p), x
        )

    def test_reference_loop(self) -> None:
        x = torch.randn(5, 13, dtype=torch.float64)
        torch.testing.assert_close(
            F.dropout(x, 0.3, seed=SEED), reference.dropout(x, SEED, 0.3), rtol=1e-15, atol=0
        )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_dropped_infinity_or_nan_is_zero(self, dtype: torch.dtype) -> None:
        for value in (math.inf, -math.inf, math.nan):
            x = torch.full((67,), value, dtype=dtype)
            y = F.dropout(x, seed=SEED)
            expected = torch.where(kept(67, SEED, 0.5), x, 0)
            assert torch.equal(y.nan_to_num(-1), expected.nan_to_num(-1))
            assert torch.equal(F.dropout(x, 1.0), torch.zeros_like(x))

    def test_nothing_to_drop_returns_the_input(self) -> None:
        x = torch.randn(5)
        assert F.dropout(x, 0.0) is x
        assert F.dropout(x, 0.5, training=False) is x
        assert nn.Dropout(0.5).eval()(x) is x

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_inplace(self, dtype: torch.dtype) -> None:
        for name, x in layouts(torch.randn(2, 3, 5, 7).to(dtype)).items():
            expected = F.dropout(x, seed=SEED)
            y = F.dropout(x, inplace=True, seed=SEED)
            assert y is x and torch.equal(x, expected), name


class TestGradients:
    X = torch.randn(3, 5, 7, dtype=torch.float64)

    @pytest.mark.parametrize("p", (0.0, 0.4, 1.0))
    def test_first_and_second_order(self, p: float) -> None:
        for x in (self.X, self.X.transpose(0, 2), self.X[:, ::2], self.X[:0]):
            x = x.detach().requires_grad_()
            assert differentiates(lambda x: F.dropout(x, p, seed=SEED), [x])

    def test_gradient_has_the_mask_of_the_output(self) -> None:
        x = torch.ones(1000, requires_grad=True)
        y = F.dropout(x, 0.3)
        (gradient,) = torch.autograd.grad(y, x, torch.ones(1000))
        assert torch.equal(gradient, y)

    def test_only_the_seed_is_saved(self) -> None:
        saved = []

        def pack(x: Tensor) -> Tensor:
            saved.append(x.numel() * x.element_size())
            return x

        x = torch.randn(1000, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            F.dropout(x)
        assert sum(saved) == 8

    def test_inplace_follows_torch(self) -> None:
        leaf = torch.randn(9, requires_grad=True)
        for dropout in (F.dropout, torch.nn.functional.dropout):
            with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
                dropout(leaf, inplace=True)
        x = leaf * 1
        y = F.dropout(x, inplace=True, seed=SEED)
        assert y is x
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert torch.equal(gradient, F.dropout(torch.ones(9), seed=SEED))

    def test_inplace_on_what_another_needs_is_found_out(self) -> None:
        x = torch.randn(9, requires_grad=True).exp()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            F.dropout(x, inplace=True).sum().backward()

    def test_checkpoint_draws_the_same_mask_again(self) -> None:
        x = torch.ones(1000, requires_grad=True)
        y = checkpoint(F.dropout, x, use_reentrant=False)
        (gradient,) = torch.autograd.grad(y, x, torch.ones(1000))
        assert torch.equal(gradient, y)

    def test_functional_transforms(self) -> None:
        x = torch.randn(9)
        gradient = torch.func.grad(lambda x: F.dropout(x, seed=SEED).sum())(x)
        assert torch.equal(gradient, F.dropout(torch.ones(9), seed=SEED))


class TestCompiler:
    def test_opcheck(self) -> None:
        seed = torch.tensor(SEED)
        for x in layouts(torch.randn(2, 3, 5, 7)).values():
            torch.library.opcheck(raw.dropout.default, (x, seed, 0.5))

    def test_compiled_equals_eager(self) -> None:
        def loss(x: Tensor) -> Tensor:
            return (F.dropout(x.sin(), 0.3, seed=SEED) * x).sum()

        x = torch.randn(7, 17, requires_grad=True)
        expected = torch.autograd.grad(loss(x), x)[0]
        gradient = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), x)[0]
        torch.testing.assert_close(gradient, expected)
        assert torch.equal(gradient == x.sin(), expected == x.sin())

    def test_compiled_draws_a_new_mask_each_time(self) -> None:
        compiled = torch.compile(F.dropout, fullgraph=True, backend="aot_eager", dynamic=True)
        x = torch.ones(1000)
        torch.manual_seed(0)
        first, second = compiled(x), compiled(x)
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(compiled(x), first)
        assert compiled(torch.ones(7, 5)).shape == (7, 5)


class TestErrors:
    @pytest.mark.parametrize("p", (-0.1, 1.1, math.inf))
    def test_probability(self, p: float) -> None:
        for dropout in (F.dropout, torch.nn.functional.dropout):
            with pytest.raises(ValueError, match="between 0 and 1, but got"):
                dropout(torch.ones(3), p)
        with pytest.raises(ValueError, match="between 0 and 1, but got nan"):
            F.dropout(torch.ones(3), math.nan)

    def test_input(self) -> None:
        with pytest.raises(TypeError, match="'input' must be Tensor, not list"):
            F.dropout([1.0])
        with pytest.raises(NotImplementedError, match=r"input has dtype torch\.int64; allowed: "):
            F.dropout(torch.ones(3, dtype=torch.int64))
        with pytest.raises(NotImplementedError, match=r"layout torch\.sparse_coo; allowed: "):
            F.dropout(torch.ones(3).to_sparse())

    def test_seed(self) -> None:
        x = torch.ones(3)
        with pytest.raises(TypeError, match="'seed' must be int or Tensor, not float"):
            F.dropout(x, seed=1.5)
        for seed in (2**64, -(2**63) - 1):
            with pytest.raises(RuntimeError, match="seed must fit in 64 bits, but got"):
                F.dropout(x, seed=seed)
        for seed in (
            torch.tensor(1.0),
            torch.tensor(1, dtype=torch.int32),
            torch.tensor([1, 2]),
            torch.tensor(1, device="meta"),
        ):
            with pytest.raises(RuntimeError, match="seed must be an int64 tensor of one element"):
                F.dropout(x, seed=seed)

    @pytest.mark.parametrize(
        "x, seed, p",
        (
            (torch.ones(3, dtype=torch.int64), torch.tensor(1), 0.5),
            (torch.ones(3, dtype=torch.complex64), torch.tensor(1), 0.5),
            (torch.ones(3), torch.tensor(1.0), 0.5),
            (torch.ones(3), torch.tensor([1, 2]), 0.5),
            (torch.ones(3), torch.tensor([], dtype=torch.int64), 0.5),
            (torch.ones(3), torch.tensor(1), -0.5),
            (torch.ones(3), torch.tensor(1), 1.5),
            (torch.ones(3), torch.tensor(1), math.nan),
            (torch.ones(3), None, 0.5),
            (torch.ones(3).to_sparse(), torch.tensor(1), 0.5),
        ),
    )
    def test_raw_operator_refuses_nonsense(self, x: Tensor, seed: Tensor, p: float) -> None:
        with pytest.raises((RuntimeError, NotImplementedError)):
            raw.dropout(x, seed, p)
