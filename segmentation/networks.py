"""Segmentation networks of the libraries, and weights for their encoders."""

import difflib
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torchvision
from torch import Tensor, nn

from models.backbones import find_weights, read_state_dict, whole_patches

# Networks, and what height and width of their images are multiples of.
STRIDES = {"deeplabv3plus": 16, "deeplabv3": 8, "segformer": 32, "unet": 32}
OUTPUT_STRIDE = 16  # of the encoder of DeepLabV3+, dilated
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of RGB in [0, 1]
# Parts of published classifiers behind the last map that the encoder keeps.
UNUSED_KEYS = (
    "classifier.", "fc.", "_fc.", "head.", "last_linear.", "conv_head.", "_conv_head.", "bn2.",
    "norm_head.", "final_conv.", "norm.",
)  # fmt: skip


def build_network(network: str, encoder: str, pretrained: str, num_mask_classes: int) -> nn.Module:
    """Build a network that maps (B, 3, H, W) to logits (B, num_mask_classes, H, W).

    H and W are multiples of the network's entry in `STRIDES`. In training mode a batch holds at
    least two images, as the pooled branch of DeepLab normalises over the batch.

    Args:
        network: deeplabv3plus, segformer or unet, of segmentation_models_pytorch; or deeplabv3,
            torchvision's.
        encoder: a name of segmentation_models_pytorch, or "tu-<name>" for one of timm; of
            deeplabv3 resnet50 or resnet101.
        pretrained: imagenet (of timm: a local file, see `find_weights`; else downloaded by the
            library), none, or a weights file of the encoder (.pth, .pt, .safetensors) with the
            keys of timm or segmentation_models_pytorch.
        num_mask_classes: K + 1.

    Raises:
        FileNotFoundError: no such weights file.
        ValueError: unknown encoder, one that cannot be dilated, no download, or weights of
            another network.
    """
    if network == "deeplabv3":
        return _build_deeplabv3(encoder, pretrained, num_mask_classes)
    _check_encoder(encoder)
    build, options = {
        "deeplabv3plus": (smp.DeepLabV3Plus, {"encoder_output_stride": OUTPUT_STRIDE}),
        "segformer": (smp.Segformer, {}),
        "unet": (smp.Unet, {}),
    }[network]
    is_timm = encoder.startswith("tu-")
    file = None if pretrained in ("imagenet", "none") else Path(pretrained).expanduser()
    if pretrained == "imagenet" and is_timm:
        file = find_weights(encoder.removeprefix("tu-"))
    weights = None
    if pretrained == "imagenet" and file is None:
        weights = True if is_timm else "imagenet"  # what the library asks for
    try:
        model = build(
            encoder_name=encoder,
            encoder_weights=weights,
            classes=num_mask_classes,
            **options,
        )
    except OSError as error:
        raise _no_download(encoder, error) from error
    except (TypeError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"segmentation.encoder: expected an encoder that {network} can take and that has "
            f"{pretrained} weights, got {encoder!r}: {_one_line(error)}"
        ) from error
    if file:
        print(f"encoder weights: {file}")
        load_encoder(model.encoder.model if is_timm else model.encoder, file)
    return model


class TorchvisionNetwork(nn.Module):
    """A segmentation network of torchvision that gives its logits alone, as the others do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K + 1, H, W) of images (B, 3, H, W)."""
        return self.model(images)["out"]


def _build_deeplabv3(encoder: str, pretrained: str, num_mask_classes: int) -> nn.Module:
    builders = {
        "resnet50": torchvision.models.segmentation.deeplabv3_resnet50,
        "resnet101": torchvision.models.segmentation.deeplabv3_resnet101,
    }
    if encoder not in builders:
        raise ValueError(
            f"segmentation.encoder: expected {' or '.join(builders)} with deeplabv3, got "
            f"{encoder!r}. Other encoders go with deeplabv3plus."
        )
    download = "DEFAULT" if pretrained == "imagenet" else None
    try:
        model = builders[encoder](
            weights=None, weights_backbone=download, num_classes=num_mask_classes
        )
    except OSError as error:
        raise _no_download(encoder, error) from error
    if pretrained not in ("imagenet", "none"):
        file = Path(pretrained).expanduser()
        print(f"encoder weights: {file}")
        load_encoder(model.backbone, file)
    return TorchvisionNetwork(model)


def _no_download(encoder: str, error: OSError) -> ValueError:
    return ValueError(
        f"segmentation.pretrained=imagenet: expected to download the weights of {encoder}, "
        f"got: {_one_line(error)} Set segmentation.pretrained=none or to a local weights file."
    )


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load a weights file into an encoder; numbers of another precision are converted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable; keys are missing; keys have no place (but for `UNUSED_KEYS`); or
            shapes differ.
    """
    wanted = encoder.state_dict()
    state = {
        _key_in(wanted, key): value
        for key, value in read_state_dict(path, "segmentation.pretrained").items()
    }
    # Old files do not count batches; the count is not used.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted and not k.startswith(UNUSED_KEYS)]
    if missing or unexpected:
        raise ValueError(
            f"{path}: expected the weights of this encoder; {len(missing)} are missing "
            f"({', '.join(missing[:5])}), {len(unexpected)} have no place "
            f"({', '.join(unexpected[:5])}). Check segmentation.encoder."
        )
    kept = {key: value for key, value in state.items() if key in wanted}
    differ = [key for key, value in kept.items() if value.shape != wanted[key].shape]
    if differ:
        raise ValueError(
            f"{path}: expected the weights of this encoder; {len(differ)} have another shape "
            f"({', '.join(differ[:5])}). Check segmentation.encoder."
        )
    encoder.load_state_dict(kept, strict=False)


def normalisation(encoder: str, pretrained: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of the three channels in [0, 1] that the encoder was trained with.

    timm knows them by name. The other encoders publish them with their ImageNet weights; with
    pretrained none or a file, the usual ImageNet numbers are taken for these.
    """
    if encoder.startswith("tu-"):
        known = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (tuple(known.mean), tuple(known.std)) if known else IMAGENET
    if pretrained == "imagenet":
        params = smp.encoders.get_preprocessing_params(encoder, "imagenet")
        return tuple(params["mean"]), tuple(params["std"])
    return IMAGENET


def network_size(size: tuple[int, int], network: str) -> tuple[int, int]:
    """Round (H, W) up to what a network takes."""
    return whole_patches(size, (STRIDES[network], STRIDES[network]))


def _check_encoder(encoder: str) -> None:
    is_timm = encoder.startswith("tu-")
    names = timm.list_models() if is_timm else smp.encoders.get_encoder_names()
    name = encoder.removeprefix("tu-")
    if timm.is_model(name) if is_timm else name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    prefix = "tu-" if is_timm else ""
    hint = f" Did you mean {prefix}{close[0]}?" if close else ""
    raise ValueError(
        f"segmentation.encoder: expected an encoder of segmentation_models_pytorch, or tu-<name> "
        f"for one of timm, got {encoder!r}.{hint}"
    )


def _key_in(wanted: dict[str, Tensor], key: str) -> str:
    """Return timm's key under the name it has inside an encoder (stages.0.x -> stages_0.x)."""
    flattened = key.replace(".", "_", 1)
    return flattened if flattened in wanted else key


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
