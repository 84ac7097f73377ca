"""One frozen dataclass per stage; every value is checked when the object is made."""

from dataclasses import dataclass, field


def _check(holds: bool, key: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {value!r}.")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, key, "one of " + ", ".join(choices), value)


def _check_share(key: str, value: float) -> None:
    _check(0 <= value <= 1, key, "a number from 0 to 1", value)


def _check_positive(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value > 0, f"{section}.{name}", "a number above 0", value)


def _check_not_negative(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value >= 0, f"{section}.{name}", "0 or more", value)


def _check_size(key: str, size: tuple[int, int]) -> None:
    _check(min(size) >= 16, key, "[height, width] of at least 16 pixels each", list(size))


def _check_part(key: str, side: int) -> None:
    _check(side == 0 or side >= 32, key, "0 (off) or 32 or more pixels", side)


def _check_tiles(section: str, tile: int, overlap: float) -> None:
    _check_part(f"{section}.tile", tile)
    _check(0 <= overlap <= 0.5, f"{section}.tile_overlap", "a number in [0, 0.5]", overlap)


SOURCES = ("sample", "neu_seg", "mtd", "dagm", "mvtec", "voc", "authors", "folder", "csv")
SPLITS = ("train", "val", "test")
CAM_TYPES = ("patchcam", "attention", "fused", "pixel")
PADDINGS = ("zeros", "replicate")
TRAINING_CAM_TYPES = ("product", "patchcam", "attention", "fused")
LABEL_ORIGINS = ("given", "predicted")
SALIENCY_PARTS = ("contrast", "feature", "normal", "variation", "external")
FEATURE_METHODS = ("background", "median", "ncut")
NETWORKS = ("deeplabv3plus", "deeplabv3", "segformer", "unet")
REFINEMENTS = ("pamr", "crf")
THRESHOLD_RULES = ("agreement", "class", "auto", "fixed")
SEGMENTATION_LOSSES = ("ce", "generalised", "symmetric", "bootstrapped")
FUSE_RULES = ("mean", "geometric", "max", "rank", "first")
GRAINS = ("auto", "none", "vertical", "horizontal")
AMP_MODES = ("auto", "bf16", "fp16", "off")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are divided.

    `val` is a part of `train`, drawn by a seeded rule, or the user's own; it is never trained on.
    docs/datasets.md says what each source expects.
    """

    source: str = "sample"  # sample, or a reader of docs/datasets.md
    root: str = "data/sample"  # folder the release was unpacked to; sample: written there
    eval_split: str = "test"  # split the table reports besides train: train, val, test
    val_fraction: float = 0.1  # share of train held out for validation
    seed: int = 0  # draws the validation part, the sample, and test of mvtec, folder and csv
    limit: int = 0  # keep only this many images per split; 0 = all
    workers: int = 0  # loader processes
    sample_train: int = 400  # images the sample source writes
    sample_test: int = 100
    test_share: float = 0.3  # of a release without official split; 0 = all of it is train
    # mtd, authors: text file with one name a line; voc: that, or a list of its ImageSets such as
    # train_aug. Empty = the split of the reader.
    train_list: str = ""
    test_list: str = ""
    table: str = ""  # csv: its file; authors: the label file; relative ones may lie under root
    classes: tuple[str, ...] = ()  # dagm: textures; authors, csv: names in order; () = all found
    defect_types: bool = False  # mvtec: a class per type of defect; paper: one class for all
    mask_level: int = 128  # folder, csv: grey level where a defect begins; 0 = class indices
    annotations: str = ""  # COCO file with masks, for any source; it may lie under root
    prefix: str = ""  # authors: of the folders of images and masks, as r in rJPEGImages

    def __post_init__(self) -> None:
        _check_choice("data.source", self.source, SOURCES)
        _check_choice("data.eval_split", self.eval_split, SPLITS)
        _check(0 < self.val_fraction < 1, "data.val_fraction", "between 0 and 1", self.val_fraction)
        _check_not_negative("data", self, "seed", "limit", "workers")
        _check_positive("data", self, "sample_train", "sample_test")
        _check(0 <= self.test_share < 1, "data.test_share", "in [0, 1)", self.test_share)
        fits = bool(self.train_list) or not self.test_list
        _check(fits, "data.train_list", "a file too where data.test_list is one", self.train_list)
        named = bool(self.table) or self.source != "csv"
        _check(named, "data.table", "the CSV file that lists the images", self.table)
        distinct = all(self.classes) and len(set(self.classes)) == len(self.classes)
        _check(distinct, "data.classes", "different names", self.classes)
        _check(0 <= self.mask_level <= 255, "data.mask_level", "0 to 255", self.mask_level)


@dataclass(frozen=True)
class SaliencyConfig:
    """How the saliency maps are made. Lengths are shares of the image's shorter side."""

    generator: str = "contrast"  # contrast, feature, normal, variation, external, fuse, auto
    folder: str = ""  # external: folder with <name>.png
    blur: float = 0.01  # sigma of the Gaussian that removes noise
    windows: tuple[float, ...] = (0.5, 0.75, 1.0)  # sides of the background medians
    # Of these each class whose side is known takes those that show it best; () = `windows` for all.
    class_windows: tuple[float, ...] = (0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    percentile: float = 99.9  # two thirds of this percentile of the residual become 1.0
    polarity: str = "auto"  # auto (learnt per class from the labels), both, dark, bright
    backbone: str = "vit_small_patch14_dinov2"  # feature, normal: any timm ViT or CNN
    weights: str = "timm"  # of it: timm (local file or download), none, or a weights file
    image_size: int = 448  # pixels; images keep their aspect at the area of this square
    block: int = 6  # number of blocks (CNN: stages) run; the last one's features are taken
    feature_method: str = "background"  # background (distance to seeds), median, ncut
    affinity_block: int = 12  # normal: tells which patches of an image are alike; 0 = `block`
    grain: str = "auto"  # variation: direction of the texture: auto, none, vertical, horizontal
    memory_images: int = 300  # normal, variation: defect-free training images used at most
    coreset: int = 10_000  # normal: their patches kept
    false_alarm: float = 0.002  # normal: share of defect-free area that lies above 0.5
    fuse: tuple[str, ...] = ("contrast", "feature")  # fuse: the generators it combines
    fuse_rule: str = "geometric"  # mean, geometric, max, rank, first
    # first: a class gets its maps from the first generator that tells its images from defect-free
    # ones with this AUROC, or from the last one named.
    fuse_auroc: float = 0.88
    # Iterations in which the generator's maps are smoothed along image edges; 0 = off. Maps of
    # patches (normal, variation) end where patches do, not where defects do.
    smoothing: int = 0
    empty_defect_free: bool = True  # maps of defect-free images become all zero

    def __post_init__(self) -> None:
        _check_choice("saliency.generator", self.generator, (*SALIENCY_PARTS, "fuse", "auto"))
        _check_choice("saliency.polarity", self.polarity, ("auto", "both", "dark", "bright"))
        _check_not_negative("saliency", self, "blur", "smoothing")
        in_range = bool(self.windows) and all(0 < w <= 4 for w in self.windows)
        _check(in_range, "saliency.windows", "one or more numbers in (0, 4]", self.windows)
        in_range = all(0 < w <= 4 for w in self.class_windows)
        _check(in_range, "saliency.class_windows", "numbers in (0, 4]", self.class_windows)
        _check(50 < self.percentile <= 100, "saliency.percentile", "in (50, 100]", self.percentile)
        _check(self.image_size >= 32, "saliency.image_size", "32 or more", self.image_size)
        _check_positive("saliency", self, "block")
        if {"normal", "auto"} & {self.generator, *self.fuse}:
            fits = self.affinity_block == 0 or self.affinity_block > self.block
            _check(
                fits, "saliency.affinity_block", "0 or above saliency.block", self.affinity_block
            )
        _check_choice("saliency.grain", self.grain, GRAINS)
        _check_choice("saliency.feature_method", self.feature_method, FEATURE_METHODS)
        enough = self.memory_images >= 4
        _check(enough, "saliency.memory_images", "4 or more", self.memory_images)
        _check(self.coreset >= 2, "saliency.coreset", "2 or more", self.coreset)
        in_range = 0 < self.false_alarm < 0.5
        _check(in_range, "saliency.false_alarm", "a number in (0, 0.5)", self.false_alarm)
        for part in self.fuse:
            _check_choice("saliency.fuse", part, SALIENCY_PARTS)
        distinct = len(self.fuse) >= 2 and len(set(self.fuse)) == len(self.fuse)
        _check(distinct, "saliency.fuse", "two or more different generators", self.fuse)
        _check_choice("saliency.fuse_rule", self.fuse_rule, FUSE_RULES)
        in_range = 0.5 <= self.fuse_auroc <= 1
        _check(in_range, "saliency.fuse_auroc", "a number in [0.5, 1]", self.fuse_auroc)


@dataclass(frozen=True)
class RefinementConfig:
    """Learned refinement of the saliency maps: a network trained on them, in rounds."""

    rounds: int = 0  # 0 = off; each round learns from the maps of the one before
    network: str = "features"  # features (decoder on a frozen ViT's patch features), or unet
    backbone: str = "vit_small_patch14_dinov2"  # features: any timm ViT or CNN
    weights: str = "timm"  # of it: timm (local file or download), none, or a weights file
    feature_size: int = 322  # pixels; the features are those of an image of this size squared
    blocks: tuple[int, ...] = (6, 12)  # whose features are taken
    encoder: str = "tu-tf_efficientnet_lite0"  # unet: any of segmentation_models_pytorch
    pretrained: str = "imagenet"  # of it: imagenet (local file or download), none, or a file
    image_size: tuple[int, int] = (192, 192)  # multiples of 32
    folds: int = 2  # networks; an image's map is made by one that never saw it; 1 = one for all
    steps: int = 400  # per network
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-2
    ema: float = 0.98  # decay of the averaged weights, which make the maps
    smoothing: int = 20  # iterations of the pixel-adaptive refinement of each map; 0 = off
    high: float = 0.6  # a pixel may belong to a class whose map is this or more
    low: float = 0.35  # a pixel whose maps are all this or less is background
    robustness: float = 0.7  # q of the generalised cross-entropy
    # Share of the steps in which it grows to q from 0, the cross-entropy; 0.5 keeps rare defects
    # among many classes or defect-free images from being given up.
    robust_after: float = 0.0
    masks: int = 0  # pixel masks of training images used as targets: no longer image labels alone
    jitter: float = 0.3
    amp: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        zero_is_off = ("rounds", "weight_decay", "smoothing", "masks", "jitter", "seed")
        _check_not_negative("refinement", self, *zero_is_off)
        _check_choice("refinement.network", self.network, ("features", "unet"))
        _check(self.feature_size >= 32, "refinement.feature_size", "32 or more", self.feature_size)
        named = bool(self.blocks) and all(block > 0 for block in self.blocks)
        _check(named, "refinement.blocks", "one or more numbers from 1", self.blocks)
        _check_choice("refinement.amp", self.amp, AMP_MODES)
        _check_size("refinement.image_size", self.image_size)
        whole = all(length % 32 == 0 for length in self.image_size)
        _check(whole, "refinement.image_size", "multiples of 32", list(self.image_size))
        _check_positive("refinement", self, "folds", "steps", "lr", "robustness")
        _check(self.batch_size >= 2, "refinement.batch_size", "2 or more", self.batch_size)
        _check(0 < self.ema < 1, "refinement.ema", "a number in (0, 1)", self.ema)
        _check_share("refinement.high", self.high)
        in_range = 0 <= self.robust_after <= 1
        _check(in_range, "refinement.robust_after", "a number in [0, 1]", self.robust_after)
        ordered = 0 <= self.low < self.high
        _check(ordered, "refinement.low", "0 or more and below refinement.high", self.low)


@dataclass(frozen=True)
class TrainConfig:
    """Training of the localiser."""

    backbone: str = "deit_small_patch16_224"  # any timm VisionTransformer
    pretrained: str = "timm"  # timm (download), none, or a .pth/.safetensors file
    patch_size: int = 0  # 0 = the backbone's own
    depth: int = 0  # keep only the first blocks; 0 = all
    num_heads: int = 0  # 0 = the backbone's own; the released code ran 8 on 6-head weights
    split_block: int = 0  # so many first blocks have one class token for all classes; paper: 0
    frozen_blocks: int = 0  # the patch embedding and this many first blocks keep their weights
    image_size: tuple[int, int] = (224, 224)  # (H, W); resized up to whole patches
    # Side in pixels of random crops of the native image, each brought to image_size. Saliency
    # decides whether a crop keeps the labels of its image (datasets.crops). 0 = off: whole images.
    crop: int = 0
    crop_support: float = 0.002  # share of a crop that must be salient to keep the labels
    epochs: int = 80
    max_steps: int = 0  # stop after this many optimizer steps; 0 = all epochs
    batch_size: int = 16
    accumulate: int = 1  # batches whose gradients make one optimizer step
    lr: float = 5e-3  # of a batch of 512; scaled by batch_size * accumulate / 512
    head_lr_scale: float = 1.0  # multiplies the rate of heads and class tokens
    pixel_lr_scale: float = 10.0  # that of the online segmentation head, see pixel_block
    layer_decay: float = 1.0  # each block learns at this share of the rate of the next one
    ema: float = 0.0  # decay of the averaged weights that are validated and kept; 0 = off
    min_lr: float = 1e-6  # not scaled: first and last rate of the schedule
    warmup_epochs: float = 5.0  # at most half of the steps
    weight_decay: float = 0.05
    clip_norm: float = 5.0  # gradient norm; 0 = off
    drop_path: float = 0.1
    final_norm: bool = False  # last LayerNorm of the backbone on the last tokens; paper: no
    pooling_decay: float = 0.996  # weight ratio of neighbouring ranks in the patch pooling
    scale_pooling: bool = True  # its window as a share of the grid; paper: no
    attention_layers: int = 3  # last n blocks averaged into the class attention
    projection_width: int = 256  # channels of the pixel embedding, where there is no pixel_block
    # The online segmentation head reads the image, the CAMs and the patch tokens after this block,
    # which it trains unless they are frozen; 0 = no head (paper). It learns from CAMs and saliency
    # and gives the CAM type pixel; its features are then contrasted, in place of a projection of
    # the last tokens.
    pixel_block: int = 0
    # What the heads' 3x3 convolutions see past the border: zeros (paper), which lift the corners
    # of a map whose logits are negative there, or replicate, the border itself.
    head_padding: str = "zeros"
    balance: float = 0.0  # list defective images until they are about this share; 0 = once
    flip: bool = True  # horizontal and vertical flips
    rotate: bool = False  # rotations by 90 degrees (square image_size only)
    jitter: float = 0.3  # brightness and contrast
    amp: str = "auto"  # auto (bf16 where the device has it, else fp16), bf16, fp16, off
    seed: int = 0
    eval_every: int = 1  # epochs between validations

    def __post_init__(self) -> None:
        _check_size("train.image_size", self.image_size)
        _check_part("train.crop", self.crop)
        support_fits = 0 < self.crop_support <= 1
        _check(support_fits, "train.crop_support", "a number in (0, 1]", self.crop_support)
        _check_choice("train.amp", self.amp, AMP_MODES)
        _check_choice("train.head_padding", self.head_padding, PADDINGS)
        positive = ("epochs", "batch_size", "accumulate", "lr", "head_lr_scale")
        positive += ("pixel_lr_scale", "attention_layers", "projection_width", "eval_every")
        _check_positive("train", self, *positive)
        zero_is_off = ("patch_size", "depth", "num_heads", "split_block", "frozen_blocks")
        zero_is_off += ("max_steps", "warmup_epochs", "weight_decay", "min_lr", "clip_norm")
        zero_is_off += ("pixel_block", "jitter", "seed")
        _check_not_negative("train", self, *zero_is_off)
        layer_fits = 0 < self.layer_decay <= 1
        _check(layer_fits, "train.layer_decay", "a number in (0, 1]", self.layer_decay)
        _check(0 <= self.balance < 1, "train.balance", "a number in [0, 1)", self.balance)
        _check(0 <= self.ema < 1, "train.ema", "a number in [0, 1)", self.ema)
        _check(0 <= self.drop_path < 1, "train.drop_path", "a number in [0, 1)", self.drop_path)
        decay_fits = 0 < self.pooling_decay <= 1
        _check(decay_fits, "train.pooling_decay", "a number in (0, 1]", self.pooling_decay)
        square = self.image_size[0] == self.image_size[1]
        _check(square or not self.rotate, "train.rotate", "false unless square", self.rotate)


@dataclass(frozen=True)
class LossConfig:
    """Weights and settings of the losses (METHOD B, C, D); weight 0 removes a loss."""

    classification: float = 1.0
    patch: float = 1.0
    token: float = 1.0
    saliency: float = 2.0
    contrast: float = 0.2
    pixel: float = 1.0  # of the online segmentation head, where train.pixel_block builds one
    cam_type: str = "product"  # guided map: product (M * ReLU(g), paper), or a type of cam.types
    second_cam: bool = True  # guide the map from the attention features too
    saliency_threshold: float = 0.0  # maps become 1 from it on and 0 below; 0 = they stay soft
    temperature: float = 0.6
    num_anchors: int = 256  # per class and batch
    num_negatives: int = 256  # per anchor
    valid_threshold: float = 0.5  # a pixel takes part from this class probability on
    hard_threshold: float = 0.9  # pixels below it may become anchors
    token_layers: int = 3  # last n blocks in the class-token contrast

    def __post_init__(self) -> None:
        weights = ("classification", "patch", "token", "saliency", "contrast")
        _check_not_negative("loss", self, *weights, "pixel")
        _check(any(getattr(self, w) for w in weights), "loss", "one weight above 0", "all 0")
        _check_positive("loss", self, "temperature", "num_anchors", "num_negatives", "token_layers")
        _check_choice("loss.cam_type", self.cam_type, TRAINING_CAM_TYPES)
        _check_share("loss.saliency_threshold", self.saliency_threshold)
        _check_share("loss.valid_threshold", self.valid_threshold)
        _check_share("loss.hard_threshold", self.hard_threshold)


@dataclass(frozen=True)
class CamConfig:
    """Class activation maps written by make_cams.py."""

    types: tuple[str, ...] = ("fused",)  # the first is the main one; each gets its folder
    labels: tuple[str, ...] = ("given",)  # given, predicted: each gets its folder
    scales: tuple[float, ...] = (1.0, 2.0)
    flip: bool = True
    batch_size: int = 16
    checkpoint: str = "last"  # last or best (lowest validation loss)
    label_threshold: float = 0.5  # image score from which a class counts as predicted
    # Side in pixels of the native image of square tiles, each brought to train.image_size; best
    # equal to train.crop. 0 = off: the whole image is resized.
    tile: int = 0
    tile_overlap: float = 0.25  # neighbours share at least this part of their side

    def __post_init__(self) -> None:
        for cam_type in self.types:
            _check_choice("cam.types", cam_type, CAM_TYPES)
        for origin in self.labels:
            _check_choice("cam.labels", origin, LABEL_ORIGINS)
        for key in ("types", "labels", "scales"):
            value = getattr(self, key)
            distinct = bool(value) and len(set(value)) == len(value)
            _check(distinct, f"cam.{key}", "one or more different values", value)
        _check(all(s > 0 for s in self.scales), "cam.scales", "numbers above 0", self.scales)
        _check_positive("cam", self, "batch_size")
        _check_choice("cam.checkpoint", self.checkpoint, ("last", "best"))
        _check_share("cam.label_threshold", self.label_threshold)
        _check_tiles("cam", self.tile, self.tile_overlap)


@dataclass(frozen=True)
class PseudoLabelConfig:
    """CAMs to training masks of the second stage."""

    # Found without masks, one for each class: agreement (with saliency) or class (of its own
    # values); auto: one for all; fixed: `threshold`.
    threshold_rule: str = "agreement"
    threshold: float = 0.6
    # Above which a saliency map is a defect to agreement; 0 = Otsu's level of all maps. Maps of the
    # generator normal, and of a fuse with it, have their border at 0.5.
    salient_from: float = 0.0
    band: float = 0.05  # 255 (ignored) this near the threshold; map values with that at 0.5
    saliency_weight: float = 0.0  # w of cam^(1 - w) * saliency^w; 0 = the CAM alone
    refine: str = "pamr"  # pamr: pixel-adaptive refinement; crf: mean field of a CRF
    refine_steps: int = 10  # its iterations; 0 = off; 5 are enough of a crf
    max_area: float = 0.95  # a class that covers more of an image than this is not believed: 255

    def __post_init__(self) -> None:
        _check_choice("pseudo_label.threshold_rule", self.threshold_rule, THRESHOLD_RULES)
        _check_share("pseudo_label.threshold", self.threshold)
        _check_share("pseudo_label.salient_from", self.salient_from)
        _check(0 <= self.band < 0.5, "pseudo_label.band", "in [0, 0.5)", self.band)
        _check_share("pseudo_label.saliency_weight", self.saliency_weight)
        _check_choice("pseudo_label.refine", self.refine, REFINEMENTS)
        _check_not_negative("pseudo_label", self, "refine_steps")
        _check_share("pseudo_label.max_area", self.max_area)


@dataclass(frozen=True)
class SegmentationConfig:
    """The second stage: a segmentation network trained on the pseudo labels."""

    network: str = "deeplabv3plus"  # deeplabv3plus, deeplabv3, segformer or unet
    # Any encoder of segmentation_models_pytorch (mit_b0 to mit_b5 suit segformer), tu-<name> for
    # one of timm; resnet50 or resnet101 with deeplabv3.
    encoder: str = "efficientnet-b0"
    pretrained: str = "imagenet"  # imagenet (download), none, or a weights file
    image_size: tuple[int, int] = (224, 224)
    epochs: int = 40
    max_steps: int = 0
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    # Of the pixels: ce, or one that bounds what wrong pseudo labels do: generalised, symmetric,
    # bootstrapped (segmentation.losses).
    loss: str = "ce"
    robustness: float = 0.7  # q of the generalised cross-entropy
    dice: float = 1.0  # weight of the Dice loss beside it
    small_loss: float = 1.0  # share of a batch's pixels, those of lowest loss, that is learnt from
    edge_smoothing: float = 0.0  # probability that a label at a border is its neighbours'; 0 = off
    absent: float = 0.0  # weight of no pixel being of a class that its image lacks; 0 = off
    ema: float = 0.0  # decay of the averaged weights that are validated and kept; 0 = off
    flip: bool = True
    rotate: bool = False
    zoom: float = 1.0  # least share of the image that random crops, enlarged, show; 1 = off
    copy_paste: float = 0.0  # probability that an image is given the defects of another; 0 = off
    # Share of the steps after which the averaged weights correct the labels they are surer than
    # teacher_confidence of; 1 = off. Needs ema.
    teacher_after: float = 1.0
    teacher_confidence: float = 0.9
    jitter: float = 0.3
    amp: str = "auto"
    seed: int = 0
    scales: tuple[float, ...] = (1.0,)  # of image_size, of predictions; mirror images always
    refine_steps: int = 0  # of the pixel-adaptive refinement of predictions; 0 = off
    checkpoint: str = "best"  # best on the validation part's pseudo labels, or last
    # Sides in pixels of the native image of random crops that it is trained on, and of square
    # tiles that predictions are made of, each brought to image_size; best equal. 0 = off: the
    # whole image is resized.
    crop: int = 0
    tile: int = 0
    tile_overlap: float = 0.25  # neighbours share at least this part of their side

    def __post_init__(self) -> None:
        _check_choice("segmentation.network", self.network, NETWORKS)
        _check_choice("segmentation.loss", self.loss, SEGMENTATION_LOSSES)
        in_range = 0 < self.robustness <= 1
        _check(in_range, "segmentation.robustness", "a number in (0, 1]", self.robustness)
        for name in ("small_loss", "zoom"):
            value = getattr(self, name)
            _check(0 < value <= 1, f"segmentation.{name}", "a number in (0, 1]", value)
        for name in ("edge_smoothing", "copy_paste", "teacher_after", "teacher_confidence"):
            _check_share(f"segmentation.{name}", getattr(self, name))
        if self.teacher_after < 1 and not self.ema:
            raise ValueError(
                "segmentation.teacher_after: expected averaged weights to be the teacher, got "
                "segmentation.ema=0. Set segmentation.ema=0.98 or teacher_after=1."
            )
        good = bool(self.scales) and all(scale > 0 for scale in self.scales)
        _check(good, "segmentation.scales", "positive numbers, at least one", self.scales)
        _check_not_negative("segmentation", self, "refine_steps")
        _check(0 <= self.ema < 1, "segmentation.ema", "a number in [0, 1)", self.ema)
        _check_choice("segmentation.amp", self.amp, AMP_MODES)
        _check_choice("segmentation.checkpoint", self.checkpoint, ("last", "best"))
        _check_size("segmentation.image_size", self.image_size)
        _check_part("segmentation.crop", self.crop)
        _check_tiles("segmentation", self.tile, self.tile_overlap)
        _check_positive("segmentation", self, "epochs", "batch_size", "lr")
        zero_is_off = ("max_steps", "weight_decay", "warmup_steps", "dice", "absent")
        zero_is_off += ("jitter", "seed")
        _check_not_negative("segmentation", self, *zero_is_off)
        square = self.image_size[0] == self.image_size[1]
        _check(square or not self.rotate, "segmentation.rotate", "false unless square", self.rotate)


@dataclass(frozen=True)
class Config:
    """All stages of one run."""

    data: DataConfig = field(default_factory=DataConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    cam: CamConfig = field(default_factory=CamConfig)
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)

    def __post_init__(self) -> None:
        gives_pixel = "pixel" not in self.cam.types or self.train.pixel_block
        types = "no pixel where train.pixel_block is 0 (no online segmentation head)"
        _check(gives_pixel, "cam.types", types, list(self.cam.types))
