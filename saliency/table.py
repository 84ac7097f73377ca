"""The names of the generators, as saliency.generator has them."""

from collections.abc import Sequence

import torch

from configs import SaliencyConfig
from datasets.record import Record
from datasets.sources import Data
from saliency import auto, contrast, external, feature, normal, variation
from saliency.edges import with_pamr
from saliency.generator import Prepared

GENERATORS = {
    "contrast": contrast.prepare,
    "feature": feature.prepare,
    "normal": normal.prepare,
    "variation": variation.prepare,
    "external": external.prepare,
    "auto": auto.prepare,
}


def make_generator(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Prepare the generator of `settings.generator`, with `settings.pamr_steps` on its maps.

    Arguments as of saliency.generator.
    """
    generator = GENERATORS[settings.generator](settings, data, records, device)
    if settings.pamr_steps:
        return with_pamr(generator, settings.pamr_steps, device)
    return generator
