"""Free memory of a device, and whether textures fit, checked while a run's inputs are prepared.

Apart from `plan.py`, the estimate of a step's memory on a GPU: that one needs the located models, and stands
above `build`, where this check is made before any model is located.
"""

import gc
import sys

import torch

from pgc3d.errors import OutOfMemoryError

# Bytes at the peak on a CPU, as measured, for each texel and for a band of them: an export and its
# comparison need 0.75 GB at 4096, 0.94 GB with all maps of a material, and at 8192 1.8 GB without them. An
# optimised image (itself, gradient, moments, mip levels, checkpoint) needs 142 for a texel at 2048.
BAKE_BYTES = 45
BAND_BYTES = 400_000_000
IMAGE_BYTES = 150


def require_texture_memory(texture_size: int, image_size: int, device: torch.device) -> None:
    """Check that textures fit into the free memory of a device.

    Args:
        texture_size: side of the texture to bake, in pixels.
        image_size: side of the image that is optimised, in pixels; 0 for none.
        device: that both are computed on.

    Raises:
        OutOfMemoryError: they do not fit.
    """
    needed = BAND_BYTES + BAKE_BYTES * texture_size**2 + IMAGE_BYTES * image_size**2
    free = free_memory(device)
    if needed > free:
        raise OutOfMemoryError(
            f"a texture of {max(texture_size, image_size)} must fit the memory of {device.type}, but needs "
            f"about {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free; lower --texture-size"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device: of the GPU, or of the computer's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def release_memory(device: torch.device) -> None:
    """Give what is no longer used back to the device, as after a network was deleted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak memory of this process in bytes: resident, and on a CUDA device."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_reserved(device)  # with what recorded graphs keep
    return peak


def used_memory(device: torch.device) -> int:
    """Memory of this process on the device in bytes."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)
