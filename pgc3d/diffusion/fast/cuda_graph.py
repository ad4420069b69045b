"""A frozen network as a CUDA graph: the host starts one thing in the place of thousands of kernels."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

KEPT = 4  # recordings: a step may use several sizes, and what earlier stages leave behind is given back
WARM_UP = 2  # calls before the recording, in which code is compiled and libraries make their plans


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # the tensors that the graph reads
    output: Any  # what it writes to


class GraphedNetwork:
    """Calls a network on CUDA by recordings, one for each shape of its inputs.

    A recording holds its own memory for all that the network makes on its way, as long as it is kept. The
    numbers are the network's own; its weights must stay where they are, and no gradient flows.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    @torch.no_grad()
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The network's answer, in memory of its own; inputs may be nested in lists, tuples and dicts."""
        leaves, structure = tree_flatten((inputs, named))
        key = (structure, *map(_signature, leaves))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if key not in self._recordings:
            self._make_room(_numbers(tensors))
            self._recordings[key] = self._record(leaves, structure)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        for own, given in zip(recording.inputs, tensors, strict=True):
            own.copy_(given)
        recording.graph.replay()
        return tree_map_only(Tensor, torch.clone, recording.output)

    def release(self) -> None:
        """Give back the memory of all recordings; the next call makes a new one."""
        self._recordings.clear()

    def _make_room(self, size: int) -> None:
        """Forget larger ones: a step that ran out of memory is tried again with fewer images at a time."""
        for key, recording in list(self._recordings.items()):
            if _numbers(recording.inputs) > size:
                del self._recordings[key]
        while len(self._recordings) >= KEPT:
            self._recordings.popitem(last=False)

    def _record(self, leaves: Iterable[Any], structure: Any) -> _Recording:
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs, named = tree_unflatten(own, structure)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.network(*inputs, **named)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()  # the recording cannot use what the warm-up leaves in the cache
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self.network(*inputs, **named)
        return _Recording(graph, [leaf for leaf in own if isinstance(leaf, Tensor)], output)


def _signature(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
