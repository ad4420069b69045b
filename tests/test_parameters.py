import pytest
import torch

from pgc3d.parameters import ParameterGroup, ParameterStore

FINITE = torch.ones((), dtype=torch.bool)


def make(values, *, relative_eps=None, lr=0.1):
    param = torch.nn.Parameter(torch.tensor(values))
    group = ParameterGroup(name="points", params=[param], lr=lr)
    if relative_eps is not None:
        group["relative_eps"] = relative_eps
    store = ParameterStore([group])
    store.use_adam()
    return param, store


def run(store, param, gradients):
    for gradient in gradients:
        store.zero_grad()
        param.grad = gradient.clone()
        store.step(FINITE)
    return param.detach().clone()


def sample(count, shape=(6,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * (10.0 ** -(index % 3)) for index in range(count)]


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_a_relative_eps_is_no_learning_rate(factor):
    """A common factor on all gradients changes no step, which a clipping threshold would otherwise do."""
    plain, store = make([0.0] * 6, relative_eps=0.1)
    scaled, other = make([0.0] * 6, relative_eps=0.1)
    gradients = sample(12)
    expected = run(store, plain, gradients)
    found = run(other, scaled, [factor * gradient for gradient in gradients])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_relative_eps_moves_entries_with_small_gradients_less():
    gradient = torch.tensor([1.0, 1e-4])
    even, store = make([0.0, 0.0])
    uneven, other = make([0.0, 0.0], relative_eps=0.1)
    run(store, even, [gradient] * 5)
    run(other, uneven, [gradient] * 5)
    torch.testing.assert_close(even[0], even[1])
    assert uneven[1].abs() < 0.01 * uneven[0].abs()


def test_one_step_with_huge_gradients_does_not_stop_the_other_entries():
    """As a sliver triangle makes: the scale that eps is relative to must not follow it."""
    gradients = [torch.tensor([1.0, 0.3])] * 20
    spiked = [*gradients[:10], torch.tensor([1e4, 0.3]), *gradients[11:]]
    param, store = make([0.0, 0.0], relative_eps=0.1)
    other, same = make([0.0, 0.0], relative_eps=0.1)
    expected, found = run(store, param, gradients), run(same, other, spiked)
    assert found[1] == pytest.approx(float(expected[1]), rel=0.1)


@pytest.mark.parametrize("relative_eps", [None, 0.05])
def test_a_step_that_is_not_finite_changes_nothing(relative_eps):
    param, store = make([1.0, 2.0], relative_eps=relative_eps)
    other, whole = make([1.0, 2.0], relative_eps=relative_eps)
    gradients = sample(3, (2,))
    run(store, param, gradients[:2])
    store.zero_grad()
    param.grad = torch.tensor([float("nan"), 1.0])
    store.step(~FINITE)
    run(store, param, gradients[2:])
    assert torch.equal(param, run(whole, other, gradients))


@pytest.mark.parametrize("relative_eps", [None, 0.05])
def test_a_saved_state_continues_as_if_nothing_had_happened(relative_eps):
    gradients = sample(8)
    param, store = make([0.5] * 6, relative_eps=relative_eps)
    run(store, param, gradients[:5])
    again, loaded = make(param.tolist(), relative_eps=relative_eps)
    loaded.load_state_dict(store.state_dict())
    assert torch.equal(run(loaded, again, gradients[5:]), run(store, param, gradients[5:]))


def test_a_state_of_another_shape_or_name_is_refused():
    param, store = make([0.5] * 6)
    run(store, param, sample(1))
    _, other = make([0.5] * 5)
    with pytest.raises(ValueError, match="of the shape"):
        other.load_state_dict(store.state_dict())
    with pytest.raises(KeyError):
        store.load_state_dict({"unknown.0.exp_avg": torch.zeros(6)})


def test_groups_have_different_names():
    param = torch.nn.Parameter(torch.zeros(1))
    group = ParameterGroup(name="a", params=[param], lr=0.1)
    with pytest.raises(ValueError, match="different names"):
        ParameterStore([group, group])
