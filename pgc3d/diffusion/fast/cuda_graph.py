"""Inference of a frozen network by CUDA graphs: one launch instead of thousands of kernel launches."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

MAX_RECORDINGS = 4  # a step may use several sizes; the oldest graph is freed beyond that
WARM_UP = 2  # calls before the capture, for compilation and autotuning of libraries


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # the tensors that the graph reads
    output: Any  # what it writes to


class GraphedNetwork:
    """A network on CUDA that is replayed from captured graphs, one for each shape of its inputs.

    A graph owns the memory of all intermediate tensors. Results equal the network's; its weights must keep
    their addresses, and there is no gradient.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    @torch.no_grad()
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The network's output as new tensors; inputs may be nested in lists, tuples and dicts."""
        leaves, structure = tree_flatten((inputs, named))
        key = (structure, *map(_signature, leaves))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if key not in self._recordings:
            self._evict(_numbers(tensors))
            self._recordings[key] = self._record(leaves, structure)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        for own, given in zip(recording.inputs, tensors, strict=True):
            own.copy_(given)
        recording.graph.replay()
        return tree_map_only(Tensor, torch.clone, recording.output)

    def release(self) -> None:
        """Free all graphs; the next call captures a new one."""
        self._recordings.clear()

    def _evict(self, size: int) -> None:
        """Free graphs of larger inputs, which a retry after running out of memory replaces, and old ones."""
        for key, recording in list(self._recordings.items()):
            if _numbers(recording.inputs) > size:
                del self._recordings[key]
        while len(self._recordings) >= MAX_RECORDINGS:
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
        torch.cuda.empty_cache()  # the graph's memory pool cannot reuse the warm-up's cached memory
        graph = torch.cuda.CUDAGraph()
        # torch's own capture stream belongs to the device of the first capture in the process
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = self.network(*inputs, **named)
        return _Recording(graph, [leaf for leaf in own if isinstance(leaf, Tensor)], output)


def _signature(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
