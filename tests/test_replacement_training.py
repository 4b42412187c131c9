"""The trainer on tensors: it finds known features, its gradients and its folding are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from replacement.dictionary import written
from replacement.training import Settings, fit
from replacement.training.active import largest
from replacement.training.coder import Coder, Layer
from replacement.training.losses import Jump, activate, objective
from replacement.training.normal import Normal, fold
from replacement.training.settings import ACTIVATIONS, KINDS
from replacement.training.train import flushed
from replacement.training.trainer import start

WIDTH, TRUE, ACTIVE, SAMPLES = 28, 64, 2.5, 2**14


def superposed(generator: torch.Generator, layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, readers and writers of more features than dimensions, few of them active."""
    readers, writers = normalize(torch.randn(2, layers, TRUE, WIDTH, generator=generator), dim=-1)
    on = torch.rand(layers, SAMPLES, TRUE, generator=generator) < ACTIVE / TRUE
    return on * (0.5 + torch.rand(on.shape, generator=generator)), readers, writers


def found(true: Tensor, learnt: Tensor) -> float:
    """The mean over true directions of the cosine with the closest learnt one."""
    cosines = normalize(true, dim=1) @ normalize(learnt, dim=1).T
    return float(cosines.max(1).values.mean())


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("topk", {"k": 3}),
        ("batchtopk", {"k": 3}),
        ("jumprelu", {"sparsity": 0.01}),
        ("relu", {"sparsity": 0.15}),
    ],
)
def test_features_in_superposition_are_found(activation, options):
    a, readers, writers = superposed(torch.Generator().manual_seed(0), 1)
    log = []
    chosen = Settings(activation=activation, features=80, steps=600, batch=512, **options)
    dictionary = fit(a @ readers, a @ writers + 3.0, chosen, log.append)
    assert found(writers[0], torch.randn(80, WIDTH)) < 0.6
    assert found(writers[0], dictionary.layers[0].writers[0]) >= 0.95
    assert log[-1].fvu < 0.3
    assert log[-1].l0 < 8


def test_a_cross_layer_feature_is_one_feature():
    """Features of layer 0 that write to both layers are found with both their writers."""
    generator = torch.Generator().manual_seed(1)
    a, readers, own = superposed(generator, 2)
    above = normalize(torch.randn(TRUE, WIDTH, generator=generator), dim=1)
    write = a @ own
    write[1] += a[0] @ above
    chosen = Settings(kind="cross-layer", features=80, k=3, steps=600, batch=512)
    writers = fit(a @ readers, write, chosen).layers[0].writers
    assert sorted(writers) == [0, 1]
    both = torch.cat([writers[0], writers[1]], dim=1)
    assert found(torch.cat([own[0], above], dim=1), both) >= 0.95


def test_dead_features_come_back():
    """Without the auxiliary loss features that never fire stay dead."""
    a, readers, writers = superposed(torch.Generator().manual_seed(0), 1)
    dead = {}
    for auxiliary in (0.0, 1 / 32):
        chosen = Settings(features=64, k=3, steps=1, batch=512, dead_after=1, auxiliary=auxiliary)
        x, y = (a @ readers)[:, :2048], (a @ writers)[:, :2048]
        trainer = start(chosen, x, y)
        with torch.no_grad():
            trainer.coder.layers[0].reader[:32] *= 0.05  # never among the three largest
        trainer.quiet[:, :32] = 1
        for _ in range(60):
            trainer.advance(x, y)
        dead[auxiliary] = int((trainer.quiet > 20).sum())
    assert dead[1 / 32] < dead[0.0] / 2


def coder(generator: torch.Generator, kind: str, activation: str, layers: int = 3) -> Coder:
    """Random weights of a kind, in float64."""

    def draw(*shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)

    made = []
    for index in range(layers):
        targets = layers - index if kind == "cross-layer" else 1
        layer = Layer(
            reader=draw(16, 6),
            reader_bias=draw(16),
            writer=draw(16, targets, 6),
            writer_bias=draw(6),
            skip=draw(6, 6) if kind == "skip" else None,
            log_threshold=draw(16) if activation == "jumprelu" else None,
        )
        made.append(layer)
        for weight in layer.weights.values():
            weight.requires_grad_()
    return Coder(made)


def naive(coder: Coder, x: Tensor, keep) -> Tensor:
    """The formula of `coder.py` with full matrices; `keep` gives a mask of pre-activations."""
    out = [torch.zeros_like(at) for at in x]
    for index, (layer, at) in enumerate(zip(coder.layers, x, strict=True)):
        z = at @ layer.reader.T + layer.reader_bias
        a = z * keep(z, index)
        for target in range(layer.writer.shape[1]):
            out[index + target] = out[index + target] + a @ layer.writer[:, target]
        out[index] = out[index] + layer.writer_bias
        if layer.skip is not None:
            out[index] = out[index] + at @ layer.skip.T
    return torch.stack(out)


def kth(values: Tensor, k: int) -> Tensor:
    return values.sort(dim=-1, descending=True).values[..., k - 1 : k]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu"])
def test_gradients_are_those_of_full_matrices(kind, activation):
    generator = torch.Generator().manual_seed(2)
    made = coder(generator, kind, activation)
    x, y = torch.randn(2, 3, 10, 6, generator=generator, dtype=torch.float64)
    chosen = Settings(
        kind=kind, activation=activation, features=16, k=4, steps=1, penalty=None, sparsity=1e-30
    )
    dead = torch.zeros(3, 16, dtype=torch.bool)
    keep = {
        "relu": lambda z, _: z > 0,
        "topk": lambda z, _: (z >= kth(z, 4)) & (z > 0),
        "batchtopk": lambda z, _: (z >= kth(z.flatten(), 40)) & (z > 0),
    }[activation]
    outcome = objective(made, x, y, chosen, 1e-30, dead)
    wanted = (y - naive(made, x, keep)).square().mean()
    weights = list(made.weights.values())
    assert torch.allclose(outcome.loss, wanted)
    ours = torch.autograd.grad(outcome.loss, weights)
    theirs = torch.autograd.grad(wanted, weights)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
        assert other.any()


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4), k=st.integers(1, 9), power=st.integers(4, 8), seed=st.integers(0, 99)
)
def test_the_two_step_search_finds_the_largest(rows, k, power, seed):
    values = torch.randn(rows, 3 * 2**power, generator=torch.Generator().manual_seed(seed))
    kept, places = largest(values, k)
    assert torch.equal(kept.sort(dim=1).values, values.topk(k).values.sort(dim=1).values)
    assert torch.equal(values.gather(1, places), kept)


def test_a_threshold_moves_by_the_density_around_it():
    """d/dθ of the mean of z 1[z > θ] is -θ p(θ); z uniform on [0, 2) has p = 1/2."""
    z = torch.linspace(0, 2, 20_001, dtype=torch.float64)[:-1, None]
    threshold = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    Jump.apply(z, threshold, 0.1).mean().backward()
    assert threshold.grad is not None
    assert float(threshold.grad) == pytest.approx(-0.6 / 2, rel=1e-3)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS), activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 999)
)
def test_the_folded_dictionary_is_the_normalised_one(kind, activation, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = coder(generator, kind, activation)
    normal = Normal(3 * draw(3, 6), draw(3).exp(), 3 * draw(3, 6), draw(3).exp())
    chosen = Settings(kind=kind, activation=activation, features=16, k=4, steps=1)
    floors = draw(3).abs()
    dictionary = fold(made, normal, chosen, floors.float(), "test")
    x = 4 * draw(3, 10, 6)
    read, _ = normal(x, x)
    keep = {
        "relu": lambda z, _: z > 0,
        "topk": lambda z, _: (z >= kth(z, 4)) & (z > 0),
        "batchtopk": lambda z, index: z > float(floors[index].float()),
        "jumprelu": lambda z, index: z > made.layers[index].threshold,
    }[activation]
    wanted = naive(made, read, keep)
    wanted = wanted * normal.write_scale[:, None, None] + normal.write_mean.unsqueeze(1)
    readings = [layer.read(at, {}) for layer, at in zip(dictionary.layers, x, strict=True)]
    for m in range(3):
        assert torch.allclose(written(readings, dictionary.layers, m, x[m]), wanted[m], atol=1e-9)


@pytest.mark.parametrize("kind", ["per-layer", "cross-layer"])
def test_writers_have_norm_one_and_readers_their_scale(kind):
    made = coder(torch.Generator().manual_seed(3), kind, "relu")
    x = torch.randn(3, 10, 6, dtype=torch.float64)
    before = naive(made, x, lambda z, _: z > 0)
    for layer in made.layers:
        layer.unit_writers()
        assert torch.allclose(layer.writer.flatten(1).norm(dim=1), torch.ones(16).double())
    assert torch.allclose(naive(made, x, lambda z, _: z > 0), before)


def test_batchtopk_leaves_the_threshold_that_keeps_k_on_average():
    a, readers, writers = superposed(torch.Generator().manual_seed(0), 1)
    chosen = Settings(activation="batchtopk", features=64, k=3, steps=300, batch=512)
    layer = fit(a @ readers, a @ writers, chosen).layers[0]
    active = len(layer.read((a @ readers)[0], {}).positions) / SAMPLES
    assert active == pytest.approx(3, rel=0.1)


def test_one_penalty_weighs_contributions_and_not_activations():
    """Twice the activation and half the writer are the same contribution: the same penalty."""
    made = coder(torch.Generator().manual_seed(4), "cross-layer", "relu")
    x = torch.randn(10, 6, dtype=torch.float64)
    for penalty in ("l1", "tanh"):
        chosen = Settings(activation="relu", penalty=penalty, features=16, steps=1)
        layer = made.layers[0]
        cost = activate(layer, x, chosen)[1]
        twice = Layer(2 * layer.reader, 2 * layer.reader_bias, layer.writer / 2, layer.writer_bias)
        assert torch.allclose(activate(twice, x, chosen)[1], cost)
        assert float(cost.detach()) > 0


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rate():
    x, y = torch.randn(2, 1, 256, WIDTH)
    y[0, 200:] = float("nan")
    log = []
    chosen = Settings(features=32, k=2, steps=50, batch=64, seed=1)
    trainer = start(chosen, x[:, :200], y[:, :200])
    log.append(trainer.advance(x[:, :64], y[:, :64]))
    weights = {name: weight.clone() for name, weight in trainer.coder.weights.items()}
    with pytest.raises(ValueError, match=r"nan at step 1, where the learning rate was .*; try"):
        trainer.advance(x[:, 192:], y[:, 192:])
    for name, weight in trainer.coder.weights.items():
        assert torch.equal(weight, weights[name])


def test_denormals_are_flushed_only_while_training():
    small = torch.full((1,), 1e-40)
    with flushed():
        assert (small * 1 == 0).all()
    assert (small * 1 != 0).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "steps=None and tokens=None"),
        ({"steps": 1, "tokens": 1}, "exactly one"),
        ({"steps": 0}, "steps=0 must be more than 0"),
        ({"steps": 1, "kind": "layer"}, "per-layer, skip, cross-layer"),
        ({"steps": 1, "activation": "gelu"}, "topk, batchtopk"),
        ({"steps": 1, "k": 9, "features": 8}, "k=9 exceeds features=8"),
        ({"steps": 1, "penalty": "l1"}, "not for topk"),
        ({"steps": 1, "penalty": "l0", "activation": "relu"}, "no gradient"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate=nan must be finite"),
        ({"steps": 1, "warmup": 0.9, "decay": 0.2}, "overlap"),
        ({"steps": 1, "decay": 1.5}, "is a share"),
        ({"steps": 1, "skip_first": 128}, "leaves nothing"),
        ({"steps": 1, "skip_first": -1}, "must not be negative"),
    ],
)
def test_settings_refuse_what_makes_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        Settings(**options)


def test_tokens_are_steps_of_a_batch():
    assert Settings(tokens=10_001, batch=1000).total == 11
