"""The names of the generators, as saliency.generator has them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from configs import SaliencyConfig
from datasets.record import Record
from datasets.sources import Data
from saliency import auto, contrast, external, feature, normal, variation
from saliency.edges import with_pamr
from saliency.generator import Prepared
from saliency.surfaces import can_be_halved

GENERATORS = {
    "contrast": contrast.prepare,
    "feature": feature.prepare,
    "normal": normal.prepare,
    "variation": variation.prepare,
    "external": external.prepare,
    "auto": auto.prepare,
}


def all_generators(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> dict[str, Prepared]:
    """Prepare each generator that the data allows; arguments as of saliency.generator."""
    surfaces = [record for record in data.split("fit") if not record.classes]
    from_surfaces = ("normal", "variation") if can_be_halved(surfaces) else ()
    return {
        name: GENERATORS[name](replace(settings, generator=name), data, records, device)
        for name in ("contrast", "feature", *from_surfaces)
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
