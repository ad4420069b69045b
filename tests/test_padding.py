import pytest
import torch

from pgc3d.kernels.padding import crop_end, pad_end

SIZES = [(2, 5, 4, 6), (1, 8, 1, 1), (1, 3, 7, 33)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_border_is_zero_and_the_inside_is_shifted(size):
    x, offset = draw(*size), draw(size[1], seed=1)
    padded = pad_end(x, offset)
    assert padded.is_contiguous(memory_format=torch.channels_last)
    assert not padded[:, :, -1].any()
    assert not padded[..., -1].any()
    assert torch.equal(crop_end(padded), x + offset[:, None, None])
    assert crop_end(padded).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, pytest.param((2, 128, 257, 320), marks=pytest.mark.gpu)], ids=str)
def test_the_kernels_are_their_twin(size, dtype):
    pytest.importorskip("triton", reason="Triton is not installed")
    from pgc3d.kernels.padding_triton import crop_end_triton, pad_end_triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, offset = draw(*size).to(dtype), draw(size[1], seed=1)
    found = pad_end_triton(x.to(device), offset.to(device))
    torch.testing.assert_close(found.cpu(), pad_end(x, offset), rtol=1e-3, atol=1e-3)
    assert torch.equal(crop_end_triton(found).cpu(), crop_end(found.cpu()))
