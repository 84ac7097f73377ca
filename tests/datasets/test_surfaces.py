"""Generated surfaces: what they show is what their masks and their table say."""

import numpy as np
import pytest

from configs import DataConfig
from datasets.files import read_image, read_mask
from datasets.sources import read_data
from datasets.surfaces import MIN_CLASS_PIXELS, SURFACES, main, make_picture, write_surface

NAMES = tuple(SURFACES)


def picture(name: str, classes: tuple[str, ...], index: int = 0):
    return make_picture(SURFACES[name], classes, np.random.default_rng((5, index)), seed=5)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_holds_the_wanted_classes_and_a_good_picture_none(name):
    both = SURFACES[name].class_names
    for classes in ((), both[:1], both[1:], both):
        image, mask = picture(name, classes)
        assert image.shape == (*mask.shape, 3)
        assert image.dtype == mask.dtype == np.uint8
        values = [both.index(c) + 1 for c in classes]
        assert set(np.unique(mask)) == {0, *values}
        assert all((mask == value).sum() >= MIN_CLASS_PIXELS for value in values)


@pytest.mark.parametrize("name", NAMES)
def test_defects_can_be_seen(name):
    # The same numbers draw the surface; cloth and wood weave and grow around what is drawn later.
    for k, class_name in enumerate(SURFACES[name].class_names):
        apart = []
        for index in range(6):
            image, mask = picture(name, (class_name,), index)
            grey = image.mean(axis=2)
            inside, outside = grey[mask == k + 1], grey[mask == 0]
            apart.append(abs(inside.mean() - outside.mean()) + abs(inside.std() - outside.std()))
        assert np.median(apart) > 5, class_name


def test_a_fixed_camera_sees_the_same_part_and_others_another_place():
    def alike(name: str) -> float:
        first, second = (picture(name, (), index)[0].mean(axis=2) for index in (1, 2))
        rows, columns = (min(a, b) for a, b in zip(first.shape, second.shape, strict=True))
        cut = [part[:rows, :columns].ravel() for part in (first, second)]
        return float(np.corrcoef(*cut)[0, 1])

    assert alike("polished") > 0.95
    assert alike("asphalt") < 0.5


def test_a_folder_is_a_table_of_ones_own(tmp_path, capsys):
    main(["asphalt", str(tmp_path / "a"), "--defective", "12", "--good", "6", "--seed", "3"])
    assert "wrote 18 pictures of asphalt" in capsys.readouterr().out
    settings = DataConfig(
        source="csv",
        root=str(tmp_path / "a"),
        table="table.csv",
        classes=("crack", "oil"),
        mask_level=0,
        group="none",
        val_fraction=0.2,
        test_share=0.3,
    )
    data = read_data(settings, tmp_path / "labels.csv")
    records = [*data.split("train"), *data.split("test")]
    assert len(records) == 18
    assert sum(not record.classes for record in records) == 6
    for record in records:
        mask = read_mask(record.mask, 2)
        assert tuple(np.unique(mask[mask > 0]) - 1) == record.classes
        assert mask.shape == read_image(record.image).shape[:2]


def test_the_same_seed_draws_the_same_and_another_seed_does_not(tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_surface(tmp_path / folder, "wood", 3, 1, seed)
    files = {f: sorted((tmp_path / f).rglob("*.png")) for f in "abc"}
    content = {f: [path.read_bytes() for path in paths] for f, paths in files.items()}
    assert content["a"] == content["b"] != content["c"]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected an empty folder, got files"):
        write_surface(tmp_path, "wood", 3, 1, 0)
