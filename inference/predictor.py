"""A trained run, ready for pictures: `from inference import load_run`.

run = load_run("runs/parts")
result = run.predict("a.png")
print(result.verdict, result.class_scores, len(result.objects))
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from datasets.files import Cam, read_image
from datasets.record import BACKGROUND, Record
from inference.images import Picture
from inference.localise import Localised
from inference.models import Trained, load_trained, localiser_of, run_in, segmenter_of, with_tile
from inference.objects import objects_of
from inference.refined import refined
from inference.results import Options, Result, Seen
from inference.roi import Roi
from models.device import select_device
from runfolder.held_out import HELD_OUT_NAME, calibration_of, limits_of, read_held_out
from runfolder.run import Run
from runfolder.thresholds import thresholds_for_new_images
from scoring.limits import DEFECTIVE, OK, defect_score
from scoring.thresholds import levelled, seed_mask
from segmentation.specks import without_specks


class Predictor:
    """The models of a run: masks, scores and verdicts of any pictures, without labels.

    The segmentation network makes the masks and the localiser the scores of the classes. With one
    of them alone, it does both: scores are then those of the segmentation network, and masks the
    refined CAMs of the classes that the localiser sees.

    Attributes:
        class_names: K names.
        thresholds: K, of the CAMs, where a localiser alone is there; else none.
        limits: what the score of an image means, None where no image was held out.
    """

    def __init__(self, run: Run, trained: Trained, device: torch.device, options: Options):
        """Build the networks of checkpoints.

        Raises:
            ValueError: a threshold for an unknown class; damaged files.
        """
        self.class_names = list(trained.class_names)
        self._run, self._options = run, options
        self._roi = Roi(options.roi) if options.roi else None
        if self._roi and trained.segmentation:
            trained = trained._replace(localiser=None)
        self._localiser = (
            localiser_of(run, trained.localiser, device) if trained.localiser else None
        )
        self._segmenter, held_out = None, []
        self.thresholds: list[float] = []
        if trained.segmentation:
            self._segmenter = segmenter_of(run, trained.segmentation, device)
            self._segmenter.keeps_specks = options.min_area is not None
            even = [0.5] * len(self.class_names)
            self._segmenter.thresholds = options.thresholds(self.class_names, even)
            held_out = read_held_out(run.prediction_dir / HELD_OUT_NAME)
        else:
            kept = thresholds_for_new_images(run, self.class_names)
            self.thresholds = options.thresholds(self.class_names, kept)
        self._both_judge = bool(self._localiser and held_out and held_out[0].localiser)
        self.limits = limits_of(
            held_out, self._both_judge, options.max_false_alarm, options.min_recall
        )
        self._calibration = calibration_of(held_out, self._both_judge)

    @property
    def batch_size(self) -> int:
        """Images that pass a network at a time."""
        return self._run.config.segmentation.batch_size

    def in_full_precision(self) -> "Predictor":
        """Let the networks compute in float32, whatever they were trained in; return this."""
        for network in (self._segmenter, self._localiser):
            if network:
                network.dtype = None
        return self

    def predict(self, image: str | Path | np.ndarray) -> Result:
        """Return what the models say of one picture.

        Args:
            image: a file, or (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it cannot be read, or the array is of another shape or type.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"image: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}."
                )
            picture = Picture(Record("image", Path("image"), ()), image)
        else:
            path = Path(image)
            picture = Picture(Record(path.stem, path, ()), read_image(path))
        (result,) = self.over([picture])
        return result

    def over(self, pictures: Iterable[Picture]) -> Iterator[Result]:
        """Give what the models say of decoded pictures, in order, one batch after the other."""
        for one in self.seen(pictures):
            yield self.judged(one, self._options.min_area or 0, self._options.keep_all)

    def seen(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """Give what the networks say of decoded pictures, in order; `judged` makes the rest."""
        return self._segmented(pictures) if self._segmenter else self._localised(pictures)

    def judged(self, one: Seen, min_area: int, keep_all: bool) -> Result:
        """Return the objects of a mask and the verdict; no network runs.

        Args:
            one: what the networks say.
            min_area: smaller objects, in pixels, are left out.
            keep_all: an image that is ok keeps its mask.
        """
        mask, objects = objects_of(one.mask, one.confidence, self.class_names, min_area)
        judges = [one.found, one.scores] if self._both_judge else [one.found]
        verdict, score, probabilities = DEFECTIVE if mask.any() else OK, None, None
        reason = f"the mask shows {'a defect' if mask.any() else 'no defect'}"
        if self.limits:
            score = defect_score(judges)
            verdict, reason = self.limits.verdict(score), self.limits.reason(score)
        if verdict == OK and not keep_all:
            mask, objects = np.zeros_like(mask), []
        if self._calibration:
            probabilities = self._by_class(self._calibration.probabilities(np.mean(judges, axis=0)))
        return Result(
            record=one.record,
            pixels=one.pixels,
            verdict=verdict,
            defect_score=score,
            reason=reason,
            class_scores=self._by_class(one.scores),
            class_probabilities=probabilities,
            mask=mask,
            objects=objects,
        )

    def cut(self, one: Seen, threshold: float | None) -> Seen:
        """Return what the networks say with a mask that is cut elsewhere; no network runs.

        Args:
            one: what the networks say.
            threshold: of all classes, see `Options`; None: as the run has it.
        """
        if threshold is None:
            return one
        exceeds = one.share > np.float32(threshold)
        return one._replace(mask=np.where(exceeds, one.best, np.uint8(BACKGROUND)))

    def without_specks(self, one: Seen) -> Seen:
        """Return it without regions smaller than was learnt from the pseudo labels."""
        areas = self._segmenter.least_areas if self._segmenter else []
        return one._replace(mask=without_specks(one.mask, areas))

    def cam(self, one: Seen) -> Cam | None:
        """Return the CAMs of the classes that the localiser sees; None where it was not asked."""
        if one.localised is None:
            return None
        present = self._localiser.predicted(one.localised.scores)
        maps = one.localised.cam(self._run.config.pseudo_label.cam_type, present)
        return Cam(maps, np.array(present, np.int64), one.localised.scores)

    def _segmented(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """Give the best class of each pixel; scores are the localiser's where there is one."""
        segmenter, localiser = self._segmenter, self._localiser
        outputs: dict[str, Localised] = {}

        def localised() -> Iterator[Picture]:
            for record, pixels, output in localiser.over_pictures(pictures):
                outputs[record.name] = output
                yield Picture(record, pixels)

        seen = localised() if localiser else pictures
        for record, pixels, logits in segmenter.over_pictures(seen):
            shares = logits.softmax(dim=0)  # (K + 1, H, W)
            highest, k = shares[1:].max(dim=0)
            best = (k + 1).to(torch.uint8).cpu().numpy()
            mask = segmenter.mask(logits)
            of_mask = torch.from_numpy(np.where(mask, mask, best)).to(shares.device).long()[None]
            region = self._region(record, pixels)
            if region is not None:
                mask, best = mask * region, best * region
            found = segmenter.scores(logits, region)
            output = outputs.pop(record.name, None)
            yield Seen(
                record=record,
                pixels=pixels,
                scores=output.scores if output else found,
                confidence=shares.gather(0, of_mask)[0].cpu().numpy(),
                mask=mask,
                best=best,
                share=(highest / (highest + shares[0])).cpu().numpy(),
                found=found,
                localised=output,
            )

    def _localised(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """Give the refined CAMs of the classes whose score is high enough, cut at thresholds."""
        settings, localiser = self._run.config.pseudo_label, self._localiser
        for record, pixels, output in localiser.over_pictures(pictures):
            present = localiser.predicted(output.scores)
            maps = output.cam(settings.cam_type, present)
            maps = refined(pixels, maps, settings, localiser.device)
            confidence = maps.max(axis=0) if present else np.zeros(output.size, np.float32)
            levels = levelled(maps, [self.thresholds[k] for k in present])
            mask, best = seed_mask(levels, present, 0.5), seed_mask(maps, present, 0.0)
            region = self._region(record, pixels)
            if region is not None:
                mask, best = mask * region, best * region
            yield Seen(
                record=record,
                pixels=pixels,
                scores=output.scores,
                confidence=confidence,
                mask=mask,
                best=best,
                share=confidence,
                found=output.scores,
                localised=output,
            )

    def _by_class(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.class_names, values.tolist(), strict=True))

    def _region(self, record: Record, pixels: np.ndarray) -> np.ndarray | None:
        """Return the region of interest of a picture, None for all of it."""
        return self._roi.of(pixels.shape[:2], str(record.image)) if self._roi else None


def load_run(
    folder: str | Path, device: str | torch.device = "auto", options: Options | None = None
) -> Predictor:
    """Return the models of a run folder, ready for pictures.

    Args:
        folder: of the run.
        device: auto, cpu or cuda, or a device.
        options: how pictures are judged; None for the defaults.

    Raises:
        FileNotFoundError: no run, or no trained model in it.
        ValueError: damaged files, or options that do not fit.
    """
    options = options or Options()
    place = select_device(device) if isinstance(device, str) else device
    run = with_tile(run_in(Path(folder)), options.tile)
    return Predictor(run, load_trained(run), place, options)
