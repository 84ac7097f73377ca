"""Types of settings: choices, and numbers with their bounds."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field

Split = Literal["train", "val", "test"]
CamType = Literal["patchcam", "attention", "fused", "pixel"]
LabelOrigin = Literal["given", "predicted"]
Amp = Literal["auto", "bf16", "fp16", "off"]
Generator = Literal["contrast", "feature", "normal", "variation", "external", "auto"]
Source = Literal["sample", "neu_seg", "mtd", "dagm", "mvtec", "voc", "authors", "folder", "csv"]
SPLITS, CAM_TYPES, LABEL_ORIGINS = map(get_args, (Split, CamType, LabelOrigin))

CHECKED = ConfigDict(
    strict=True, allow_inf_nan=False, extra="forbid", use_attribute_docstrings=True
)
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[int, Field(ge=16)]
Size = tuple[Length, Length]


def _side(value: int) -> int:
    if 0 < value < 32:
        raise ValueError("0 (off) or 32 or more pixels")
    return value


def _network(value: str) -> str:
    # "hf-hub:..." and folders would be asked for, whatever a checkpoint names.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        raise ValueError("the name of an architecture, such as vit_small_patch14_dinov2")
    return value


Side = Annotated[Count, AfterValidator(_side)]
NetworkName = Annotated[str, AfterValidator(_network)]
