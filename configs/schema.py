"""Every setting of a run: one frozen dataclass per section, checked by pydantic when it is made.

The string below a field is its documentation: `python -m configs --explain KEY` prints it, and
docs/settings.md is made of all of them. Constants stand in the module that uses them.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from configs.fields import (
    CHECKED,
    Amp,
    BelowOne,
    CamType,
    Count,
    Generator,
    LabelOrigin,
    NetworkName,
    PositiveFloat,
    PositiveInt,
    Share,
    Side,
    Size,
    Source,
    Split,
    Weight,
)


@dataclass(frozen=True, config=CHECKED)
class DataConfig:
    """Which images, and how they are divided.

    `val` is a part of `train`, drawn by a seeded rule, or the user's own; it is never trained on.
    docs/datasets.md says what each source expects.
    """

    source: Source = "sample"
    """The reader of the data set; sample is generated."""
    root: str = "data/sample"
    """Folder that the release was unpacked to; the sample is written there."""
    eval_split: Split = "test"
    """Split that the table reports, with train."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of train that is held out for validation."""
    seed: Count = 0
    """Draws the validation part, the sample, and the test split of mtd, mvtec, folder and csv."""
    group: str = "auto"
    """Pictures of one part, or copies of one picture, which no draw divides: auto (found in the
    images), none, or a regular expression whose groups in a name name them."""
    clean_test: bool = False
    """Train only on groups of pictures that the test split does not show."""
    develop_list: str = ""
    """Text file with names of training images that settings may be chosen on, one a line."""
    limit: Count = 0
    """Keep only this many images per split; 0 = all."""
    workers: Count = 0
    """Loader processes."""
    sample_train: PositiveInt = 400
    """Training images that the sample source writes."""
    sample_test: PositiveInt = 100
    """Test images that the sample source writes."""
    test_share: BelowOne = 0.3
    """Test share of a release without an official split; 0 = all of it is train."""
    train_list: str = ""
    """neu_seg, mtd, authors: text file with one name a line; voc: that, or a list of its ImageSets
    such as train_aug. Empty = the split of the reader."""
    test_list: str = ""
    """As data.train_list, of the test split."""
    table: str = ""
    """csv: its file; authors: the label file. A relative path may lie under data.root."""
    classes: tuple[str, ...] = ()
    """dagm: textures; authors, csv: class names in order; [] = all that are there."""
    defect_types: bool = False
    """mvtec: a class per type of defect; the paper has one class for all."""
    mask_level: Annotated[int, Field(ge=0, le=255)] = 128
    """folder, csv: grey level of a mask from which a pixel is a defect; 0 = class indices."""
    annotations: str = ""
    """Masks for any source: COCO or Label Studio file, LabelMe folder; may lie under data.root."""
    prefix: str = ""
    """authors: prefix of the folders of images and masks, as r in rJPEGImages."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.test_list and not self.train_list:
            raise ValueError("data.train_list: expected a file where data.test_list is one, got ''")
        if self.source == "csv" and not self.table:
            raise ValueError("data.table: expected the CSV file that lists the images, got ''")
        if not all(self.classes) or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"data.classes: expected different names, got {list(self.classes)}")
        return self


@dataclass(frozen=True, config=CHECKED)
class SaliencyConfig:
    """How the saliency maps are made (docs/saliency.md)."""

    generator: Generator = "contrast"
    """What makes the maps; auto: normal and variation where defect-free images are there, else
    contrast."""
    folder: str = ""
    """external: folder with <name>.png."""
    polarity: Literal["auto", "both", "dark", "bright"] = "auto"
    """contrast: side of its surface on which a defect lies; auto: learnt per class from labels."""
    backbone: NetworkName = "vit_small_patch14_dinov2"
    """feature, normal, variation and the learned refinement: any timm ViT or CNN. The features are
    those of its middle block."""
    weights: str = "timm"
    """Of saliency.backbone: timm (local file or download), none, or a weights file."""
    image_size: Annotated[int, Field(ge=32)] = 448
    """feature, normal, variation: images keep their aspect at the area of this square, pixels."""
    pamr_steps: Count = 0
    """Iterations of PAMR on the generator's maps, which else end where patches do; 0 = off."""
    empty_defect_free: bool = True
    """Maps of defect-free images become all zero."""


@dataclass(frozen=True, config=CHECKED)
class RefinementConfig:
    """Learned refinement: a network trained on all saliency maps, in rounds."""

    rounds: Count = 0
    """Rounds; each learns from the maps of the one before; 0 = off."""
    steps: PositiveInt = 400
    """Optimizer steps per network; there are two, each of one half of the images."""
    image_size: Size = (192, 192)
    """(H, W) that the network sees, pixels."""
    masks: Count = 0
    """Pixel masks of training images used as targets: no longer image labels alone."""
    seed: Count = 0
    """Of weights, order, augmentation, and of the draw of masks."""


@dataclass(frozen=True, config=CHECKED)
class TrainConfig:
    """Training of the localiser (docs/method.md, A)."""

    backbone: NetworkName = "deit_small_patch16_224"
    """Any timm VisionTransformer with a class token, or a DINOv3 ViT."""
    pretrained: str = "timm"
    """timm (local file or download), none, or a .pth or .safetensors file."""
    patch_size: Count = 0
    """Pixels; 0 = the backbone's own."""
    depth: Count = 0
    """Keep only so many first blocks; 0 = all."""
    num_heads: Count = 0
    """Attention heads; 0 = the backbone's own. The released code ran 8 on 6-head weights."""
    frozen_blocks: Count = 0
    """The patch embedding and so many first blocks keep their weights and run on one class token
    as pretrained, which is repeated per class after them; the paper has 0."""
    image_size: Size = (224, 224)
    """(H, W) in pixels; resized up to whole patches."""
    crop: Side = 0
    """Side in pixels of random crops of the native image, each brought to train.image_size (labels
    by the rule of datasets/crops.py); 0 = whole images."""
    epochs: PositiveInt = 80
    """Passes over the training images."""
    max_steps: Count = 0
    """Stop after so many optimizer steps; 0 = all epochs."""
    batch_size: PositiveInt = 16
    """Images of one optimizer step."""
    lr: PositiveFloat = 5e-3
    """Peak rate of a batch of 512; scaled by batch_size / 512."""
    head_lr_scale: PositiveFloat = 1.0
    """Multiplies the rate of heads and class tokens."""
    warmup_epochs: Weight = 5.0
    """Epochs in which the rate rises; at most half of the steps."""
    drop_path: BelowOne = 0.1
    """Stochastic depth of the last block."""
    scale_pooling: bool = True
    """The window of the patch pooling is a share of the grid (paper: a number of patches)."""
    attention_layers: PositiveInt = 3
    """Last n blocks: averaged into the class attention, and in the class-token contrast."""
    projection_width: PositiveInt = 256
    """Channels of the pixel embedding, where train.pixel_block is 0."""
    pixel_block: Count = 0
    """The online segmentation head reads the tokens of this block (docs/method.md, E); 0 = none."""
    head_padding: Literal["zeros", "replicate"] = "zeros"
    """What the heads' 3 x 3 convolutions see past the border: zeros (paper) lift the corners of a
    map whose logits are negative there; or the border itself."""
    augment_defects: Share = 0.0
    """Probability that defects of an image are faded, and those of another added; 0 = off."""
    balance: BelowOne = 0.0
    """List defective images until they are about this share; 0 = each image once."""
    amp: Amp = "auto"
    """Autocast; auto: bf16 where the device multiplies it, else fp16 on a GPU, off on a CPU."""
    seed: Count = 0
    """Of weights, order and augmentation."""
    eval_every: PositiveInt = 1
    """Epochs between validations."""


@dataclass(frozen=True, config=CHECKED)
class LossConfig:
    """Weights and settings of the losses (docs/method.md, A to E); weight 0 removes a loss."""

    classification: Weight = 1.0
    """Weight of the classification loss of the class tokens."""
    patch: Weight = 1.0
    """Weight of the classification loss of the pooled patch map."""
    token: Weight = 1.0
    """Weight of the class-token contrast."""
    saliency: Weight = 2.0
    """Weight of the saliency guidance."""
    contrast: Weight = 0.2
    """Weight of the pixel contrast."""
    pixel: Weight = 1.0
    """Weight of the online segmentation head's loss, where train.pixel_block builds one."""
    saliency_threshold: Share = 0.0
    """Saliency becomes 1 from this value on and 0 below; 0 = it stays soft."""
    temperature: PositiveFloat = 0.6
    """Temperature of the pixel contrast."""
    num_anchors: PositiveInt = 256
    """Anchors per class and batch."""
    num_negatives: PositiveInt = 256
    """Negatives per anchor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        weights = (self.classification, self.patch, self.token, self.saliency, self.contrast)
        if not any(weights):
            raise ValueError("loss: expected one weight above 0, got none")
        return self


@dataclass(frozen=True, config=CHECKED)
class CamConfig:
    """Class activation maps written by make_cams.py."""

    types: Annotated[tuple[CamType, ...], Field(min_length=1)] = ("fused",)
    """Types that are written, each to cams/<type>/ (docs/method.md, A)."""
    labels: Annotated[tuple[LabelOrigin, ...], Field(min_length=1)] = ("given",)
    """Whose classes the maps show: the image labels, or those that the localiser predicts."""
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0, 2.0)
    """Of train.image_size; the maps of all scales are added."""
    flip: bool = True
    """Add the maps of the mirror images."""
    batch_size: PositiveInt = 16
    """Images, or tiles, at a time."""
    label_threshold: Share = 0.0
    """Image score from which a class counts as predicted; 0 = learnt for each class."""
    tile: Side = 0
    """Side in pixels of square tiles of the native image, each brought to train.image_size; best
    equal to train.crop. 0 = the whole image."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("types", "labels", "scales"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"cam.{key}: expected different values, got {list(values)}")
        return self


@dataclass(frozen=True, config=CHECKED)
class PseudoLabelConfig:
    """CAMs to training masks of the second stage."""

    cam_type: CamType = "fused"
    """The CAMs that become pseudo labels; one of cam.types."""
    threshold_rule: Literal["agreement", "class", "auto", "fixed"] = "agreement"
    """How the threshold is found without masks: agreement (with saliency) or class (Otsu's), one
    for each class; auto (Otsu's), one for all; fixed: pseudo_label.threshold."""
    threshold: Share = 0.6
    """Background score of the rule fixed."""
    salient_from: Share = 0.0
    """Saliency above which a pixel is a defect to agreement; 0 = Otsu's level of all maps."""
    saliency_weight: Share = 0.0
    """w of cam^(1 - w) * saliency^w; 0 = the CAM alone."""
    pamr_steps: Count = 10
    """Iterations of PAMR, which moves maps to the edges of the image; 0 = off."""


@dataclass(frozen=True, config=CHECKED)
class SegmentationConfig:
    """The second stage: a segmentation network trained on the pseudo labels."""

    network: Literal["deeplabv3plus", "deeplabv3", "segformer", "unet"] = "deeplabv3plus"
    """deeplabv3 is torchvision's, the others are those of segmentation_models_pytorch."""
    encoder: NetworkName = "efficientnet-b0"
    """Any of segmentation_models_pytorch (segformer: mit_b0 to mit_b5), tu-<name> for one of timm;
    deeplabv3: resnet50 or resnet101."""
    pretrained: str = "imagenet"
    """imagenet (local file or download), none, or a weights file of the encoder."""
    image_size: Size = (224, 224)
    """(H, W) in pixels; resized up to what the network takes."""
    epochs: PositiveInt = 40
    """Passes over the training images."""
    max_steps: Count = 0
    """Stop after so many optimizer steps; 0 = all epochs."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Images of one optimizer step; DeepLab normalises over them, so 2 or more."""
    lr: PositiveFloat = 1e-3
    """Peak rate."""
    warmup_epochs: Weight = 2.0
    """Epochs in which the rate rises; at most half of the steps."""
    ema: BelowOne = 0.0
    """Decay of the averaged weights that are validated and kept; 0 = off."""
    copy_paste: Share = 0.0
    """Probability that an image is given the defects of another one; 0 = off."""
    amp: Amp = "auto"
    """As train.amp."""
    seed: Count = 0
    """Of weights, order and augmentation."""
    eval_every: PositiveInt = 1
    """Epochs between validations."""
    pamr_steps: Count = 0
    """Iterations of PAMR on predictions; 0 = off."""
    crop: Side = 0
    """Side in pixels of random crops of the native image, each brought to
    segmentation.image_size. 0 = whole images."""
    tile: Side = 0
    """Side in pixels of square tiles that predictions are made of; best equal to
    segmentation.crop. 0 = the whole image."""


@dataclass(frozen=True, config=CHECKED)
class Config:
    """All sections of one run."""

    data: DataConfig = DataConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    refinement: RefinementConfig = RefinementConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    cam: CamConfig = CamConfig()
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    segmentation: SegmentationConfig = SegmentationConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        has_head = self.train.pixel_block > 0
        if "pixel" in self.cam.types and not has_head:
            raise ValueError(
                "cam.types: expected no pixel where train.pixel_block is 0 (no online segmentation "
                f"head), got {list(self.cam.types)}"
            )
        if has_head and not self.loss.pixel:
            raise ValueError(
                "loss.pixel: expected a weight above 0 where train.pixel_block builds a head, got "
                "0: its maps would be random. Set train.pixel_block=0 to leave the head out"
            )
        if self.pseudo_label.cam_type not in self.cam.types:
            raise ValueError(
                f"pseudo_label.cam_type: expected one of cam.types, {', '.join(self.cam.types)}, "
                f"got {self.pseudo_label.cam_type!r}"
            )
        return self
