"""Every command of README.md runs, on a miniature data set and with the smallest networks."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

import export
import pipeline
from configs.command_line import ROOT
from datasets.files import write_image, write_mask

README = ROOT / "README.md"
SMALL = [
    "data.val_fraction=0.3",
    "data.workers=0",
    "saliency.backbone=test_vit",
    "saliency.weights=none",
    "saliency.image_size=32",
    "refinement.rounds=0",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
    "train.patch_size=16",
    "train.depth=2",
    "train.frozen_blocks=0",
    "train.attention_layers=1",
    "train.image_size=[32,32]",
    "train.max_steps=1",
    "train.batch_size=4",
    "cam.scales=[1.0]",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.pretrained=none",
    "segmentation.image_size=[32,32]",
    "segmentation.max_steps=1",
    "segmentation.batch_size=4",
    "segmentation.pamr_steps=1",
]
HEAD = {"neu_seg_cpu.toml": 2, "folder.toml": 2, "sample.toml": 2}  # train.pixel_block


def commands() -> list[str]:
    """Return the commands of the README's blocks of bash, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with own images, NEU-Seg, new images and released CAMs, as the README names them."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)

    def picture(path: Path) -> np.ndarray:
        image = rng.integers(90, 110, (40, 48, 3), dtype=np.uint8)
        image[10:20, 12:30] = 30
        write_image(path, image)
        return image

    for name in (*(f"scratch/{i}" for i in range(6)), *(f"good/{i}" for i in range(4))):
        picture(folder / f"own/{name}.png")
    for split, count in (("training", 6), ("test", 2)):
        for i in range(count):
            picture(folder / f"neu/images/{split}/{i:06d}.jpg")
            mask = np.zeros((40, 48), np.uint8)
            mask[10:20, 12:30] = 1 + i % 3
            write_mask(folder / f"neu/annotations/{split}/{i:06d}.png", mask)
    picture(folder / "new/part.png")
    (folder / "test.txt").write_text("a\n")
    write_mask(folder / "masks/a.png", np.eye(8, dtype=np.uint8))
    (folder / "patchcam").mkdir()
    cams = {0: np.eye(8, dtype=np.float32)}
    np.save(folder / "patchcam/a.npy", np.array(cams, dtype=object), allow_pickle=True)
    return folder


def run_module(words: list[str]) -> int:
    """Do in this process what pipeline.py leaves to a new one."""
    module = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
    arguments = words[2:] if words[0] == "-m" else words[1:]
    name = f"{module}.__main__" if (ROOT / module / "__main__.py").is_file() else module
    importlib.import_module(name).main(arguments)
    return 0


def with_places(words: list[str], place: Path) -> list[str]:
    """Put the miniature's paths where the README has placeholders."""
    root = "neu" if any("neu_seg" in word for word in words) else "own"
    names = {"NEW_IMAGES": "new", "test.txt": "test.txt", "patchcam": "patchcam", "masks": "masks"}
    words = [word.replace("=DIR", f"={place}/{root}") for word in words]
    return [
        str(place / names[word]) if word in names else word.replace("runs/", f"{place}/runs/")
        for word in words
    ]


def run_all_stages(words: list[str], place: Path, monkeypatch) -> None:
    """Run `bash run_STAC.sh WORDS` in this process with small settings."""
    monkeypatch.setattr(pipeline, "_call", run_module)
    configs = [Path(word).name for word in words if word.endswith(".toml")] or ["sample.toml"]
    small = [*SMALL, f"train.pixel_block={HEAD.get(configs[-1], 0)}"]
    if "sample.toml" in configs:
        small += [f"data.root={place}/sample", "data.sample_train=8", "data.sample_test=2"]
    small += ['cam.types=["fused"]', "pseudo_label.cam_type=fused"]
    given = words[words.index("--set") + 1 :] if "--set" in words else []
    words = words[: words.index("--set")] if given else words
    given = [re.sub(r"(crop|tile)=448", r"\1=32", setting) for setting in given]
    if "--out" not in words:
        words = [*words, "--out", str(place / "runs" / Path(configs[0]).stem)]
    pipeline.main([*words, "--device", "cpu", "--set", *small, *given])


@pytest.mark.end_to_end
def test_every_command_of_the_readme_runs(place, monkeypatch, capsys):
    ran = []
    for command in commands():
        program, script, *words = shlex.split(command)
        words = with_places(words, place)
        monkeypatch.chdir(ROOT)
        if script == "run_STAC.sh":
            run_all_stages(words, place, monkeypatch)
        elif script == "run_tests.sh":
            shown = subprocess.run([program, script, "--help"], capture_output=True, check=True)
            assert shown.stdout.startswith(b"usage")
        elif script == "-m":
            out = ["--out", str(place / "inspect")] if words[0] == "datasets.inspect" else []
            run_module(["-m", words[0], *out, *words[1:]])
        elif script != "export.py" or export.CAN_EXPORT:
            device = ["--device", "cpu"] if script in ("predict.py", "report.py") else []
            run_module([script, *words, *device])
        ran.append(script)
        capsys.readouterr()

    assert ran.count("run_STAC.sh") >= 4
    assert {"predict.py", "export.py", "report.py", "evaluation.py", "run_tests.sh"} <= set(ran)
    for name in ("sample", "folder", "neu_seg", "neu_seg_cpu", "large"):
        assert (place / f"runs/{name}/report.html").is_file(), name


def test_the_readme_is_short_and_begins_with_a_command():
    text = README.read_text(encoding="utf-8")
    first = next(i for i, line in enumerate(text.splitlines(), 1) if line.startswith("bash run_"))

    assert len(text.split()) <= 1000
    assert first <= 30
