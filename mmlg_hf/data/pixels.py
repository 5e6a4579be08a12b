"""Pictures as 8-bit pixels, made where they are read, and as the floats that the model takes, made on its device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from .pictures import make_pixels

_AS_BYTES = {"do_rescale": False, "do_normalize": False}


class Pixels:
    """What an image processor makes of pictures, in two steps: `read` in a worker, and `finish` on the device.

    A processor that resizes to 8 bits and then rescales and normalises each value by itself, as those of CLIP, SigLIP
    and ViT do, is a table of 256 floats for each channel. The table is taken from the processor itself, so that the
    floats are its own to the last bit; where it does not give what the processor makes of a picture, there is no
    table, and `read` gives the floats.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor
        self._tables: dict[str, Tensor | None] = {}

    @property
    def table(self) -> Tensor | None:
        """The floats of the 256 values, [channels, 256]; None for a processor that needs more than a table."""
        processor = self.image_processor
        key = processor.to_json_string() if hasattr(processor, "to_json_string") else ""  # its settings can be changed
        if key not in self._tables:
            self._tables[key] = _table_of(processor)
        return self._tables[key]

    def read(self, images: Sequence[PILImage.Image], return_tensors: str = "pt") -> Any:
        """Return pictures [B, 3, H, W] as uint8, or as floats where there is no table.

        Raises:
            LearngeneError: if the image processor cannot make one batch of them.
        """
        if self.table is None:
            return make_pixels(self.image_processor, images, return_tensors)
        made = make_pixels(self.image_processor, images, return_tensors, **_AS_BYTES)
        return made.to(torch.uint8) if isinstance(made, Tensor) else np.asarray(made).astype(np.uint8)

    def finish(self, pixels: Tensor) -> Tensor:
        """Return the floats of pixels [B, 3, H, W] on their device; floats are returned as they are."""
        if pixels.dtype != torch.uint8 or self.table is None:
            return pixels
        return apply_table(self.table, pixels)


def apply_table(table: Tensor, pixels: Tensor) -> Tensor:
    """Look 8-bit pixels [B, channels, H, W] up in a table [channels, 256], on the pixels' device."""
    table = table.to(pixels.device, non_blocking=True)
    found = torch.empty(pixels.shape, dtype=table.dtype, device=pixels.device)
    # A picture at a time stays in a core's cache; an accelerator is kept waiting by many small calls instead.
    parts = zip(pixels, found, strict=True) if pixels.device.type == "cpu" else [(pixels.transpose(0, 1), None)]
    for part, target in parts:
        for channel, values in enumerate(part):
            looked_up = torch.index_select(table[channel], 0, values.reshape(-1).int())
            (found[:, channel] if target is None else target[channel]).copy_(looked_up.view(values.shape))
    return found


def _table_of(image_processor: Any) -> Tensor | None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = PILImage.fromarray(np.stack([values] * 3, axis=-1))
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    picture = PILImage.fromarray(noise)
    as_it_is = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    try:
        made = image_processor(images=[ramp], return_tensors="pt", **as_it_is)["pixel_values"]
        table = made.reshape(len(made[0]), 256)
        read = image_processor(images=[picture], return_tensors="pt", **_AS_BYTES)["pixel_values"]
        wanted = image_processor(images=[picture], return_tensors="pt")["pixel_values"]
        found = apply_table(table, read.to(torch.uint8))
        alike = torch.equal(read.to(torch.uint8), read) and torch.allclose(found, wanted, rtol=0, atol=1e-6)
    except Exception:  # whatever a processor of another kind makes of these keywords
        return None
    return table if alike and table.is_floating_point() else None
