"""Typed configuration: one dataclass per section, one TOML per data set."""

from configs.loading import (
    changed,
    fingerprint,
    flat,
    from_dict,
    load,
    own_settings,
    refuse_other_settings,
    to_dict,
    to_toml,
)
from configs.schema import (
    CamConfig,
    Config,
    DataConfig,
    LossConfig,
    PseudoLabelConfig,
    RefinementConfig,
    SaliencyConfig,
    SegmentationConfig,
    TrainConfig,
)

__all__ = [
    "CamConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "PseudoLabelConfig",
    "RefinementConfig",
    "SaliencyConfig",
    "SegmentationConfig",
    "TrainConfig",
    "changed",
    "fingerprint",
    "flat",
    "from_dict",
    "load",
    "own_settings",
    "refuse_other_settings",
    "to_dict",
    "to_toml",
]
