"""Guidances whose state begins with their first step: it is restored whole, or refused."""

from types import SimpleNamespace

import pytest
import torch

from pgc3d.checkpoint import _restore
from pgc3d.interfaces import Stateful


class Trained:
    """A parameter with Adam, whose state torch makes in the first step."""

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.optimizer = torch.optim.Adam([self.weight], lr=0.1)

    def step(self):
        self.optimizer.zero_grad()
        self.weight.square().sum().backward()
        self.optimizer.step()

    def state_dict(self):
        state = self.optimizer.state.get(self.weight, {})
        return {"weight": self.weight.detach()} | {f"adam.{key}": value for key, value in state.items()}

    def load_state_dict(self, state_dict):
        with torch.no_grad():
            self.weight.copy_(state_dict["weight"])
        adam = {key[5:]: value.clone() for key, value in state_dict.items() if key.startswith("adam.")}
        self.optimizer.state.clear()
        if adam:
            self.optimizer.state[self.weight] = adam


def saved(steps):
    trained = Trained()
    for _ in range(steps):
        trained.step()
    return trained, {name: torch.as_tensor(value).clone() for name, value in trained.state_dict().items()}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_state_is_restored_into_a_new_object(steps):
    whole, state = saved(steps)
    other = Trained()
    assert isinstance(other, Stateful)
    _restore(other, state)
    assert other.state_dict().keys() == state.keys()
    whole.step()
    other.step()
    assert torch.equal(whole.weight, other.weight)


def test_what_is_missing_or_left_over_is_refused():
    _, state = saved(1)
    with pytest.raises(ValueError, match="must hold weight"):
        _restore(Trained(), {name: value for name, value in state.items() if name != "weight"})
    with pytest.raises(ValueError, match="must hold weight"):
        _restore(Trained(), state | {"other": torch.ones(2)})
    with pytest.raises(ValueError, match=r"adam.exp_avg must be finite"):
        _restore(Trained(), state | {"adam.exp_avg": torch.full((3,), torch.nan)})
    with pytest.raises(ValueError, match=r"weight must be torch.float32 of shape \[3\]"):
        _restore(Trained(), state | {"weight": torch.ones(1)})


def test_an_object_that_ignores_what_it_is_given_is_found():
    forgetful = SimpleNamespace(
        state_dict=lambda: {"weight": torch.ones(1)}, load_state_dict=lambda state: None
    )
    with pytest.raises(ValueError, match="must hold weight"):
        _restore(forgetful, {"weight": torch.ones(1), "adam.step": torch.ones(1)})
