"""digits32 and scene_digits: fixed splits, keyed training images, graded difficulty, errors."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from ddi.data import Dataset, DatasetMismatchError, Split, get_dataset, list_datasets
from ddi.data import digits as digits_module
from ddi.data import scenes as scenes_module
from ddi.data.base import checksum
from ddi.data.draw import Stream, load_scans, place, split_scans
from ddi.data.scenes import CONFIG, draw_scenes

SIZES = {"digits32": (1097, 200, 500), "scene_digits": (12_000, 2_000, 5_000)}


@pytest.fixture(scope="module", params=sorted(SIZES))
def data(request: pytest.FixtureRequest) -> Dataset:
    return get_dataset(request.param)


@pytest.fixture(scope="module")
def splits(data: Dataset) -> dict[str, Split]:
    return {"train": data.train(0, 0), "validation": data.validation(), "test": data.test()}


def test_splits_have_the_published_sizes_and_types(data: Dataset, splits: dict[str, Split]):
    assert tuple(len(split) for split in splits.values()) == SIZES[data.name]
    for split in splits.values():
        n = len(split)
        assert (split.images.dtype, split.images.shape) == (torch.uint8, (n, 3, 32, 32))
        assert (split.labels.dtype, split.labels.shape) == (torch.int64, (n,))
        assert split.scan is not None
        assert (split.scan.dtype, split.scan.shape) == (torch.int64, (n,))
        assert torch.equal(split.labels, torch.from_numpy(load_scans()[1])[split.scan])
        assert set(split.labels.tolist()) == set(range(data.num_classes))


def test_no_scan_is_in_two_splits(splits: dict[str, Split]):
    used = {which: set(split.scan.tolist()) for which, split in splits.items()}
    assert {which: len(scans) for which, scans in used.items()} == {
        "train": 1097,
        "validation": 200,
        "test": 500,
    }
    assert len(used["train"] | used["validation"] | used["test"]) == 1797


def test_scans_of_every_class_are_spread_evenly():
    labels = load_scans()[1]
    overall = np.bincount(labels) / len(labels)
    for ids in split_scans().values():
        assert np.abs(np.bincount(labels[ids]) - overall * len(ids)).max() <= 1.5


def test_fixed_splits_show_every_scan_equally_often(data: Dataset, splits: dict[str, Split]):
    for which in ("validation", "test"):
        counts = torch.bincount(splits[which].scan)
        times = {"digits32": 1, "scene_digits": 10}[data.name]
        assert set(counts[counts > 0].tolist()) == {times}


def test_fixed_splits_are_kept_in_memory(data: Dataset):
    assert data.test() is data.test()
    assert data.validation() is data.validation()


def test_same_seed_and_epoch_give_the_same_images(data: Dataset, splits: dict[str, Split]):
    again = get_dataset(data.name).train(0, 0)
    assert checksum(again) == checksum(splits["train"])
    assert torch.equal(again.scan, splits["train"].scan)


@pytest.mark.parametrize("key", [(0, 1), (1, 0)])
def test_other_epochs_and_seeds_are_redrawn(data: Dataset, splits: dict[str, Split], key: tuple[int, int]):
    other, first = data.train(*key), splits["train"]
    assert not torch.equal(other.labels, first.labels)
    same = (other.images == first.images).all(dim=(1, 2, 3))
    assert not same.any()


@pytest.mark.parametrize("key", [(-1, 0), (0, -1)])
def test_negative_seed_or_epoch_is_refused(data: Dataset, key: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"{data.name}.train: got seed={key[0]}, epoch={key[1]}"):
        data.train(*key)


@pytest.mark.parametrize("which", ["validation", "test"])
def test_one_changed_pixel_is_a_mismatch(data: Dataset, which: str, monkeypatch: pytest.MonkeyPatch):
    scans, labels = load_scans()
    scans = scans.copy()
    scan = split_scans()[which][0]
    scans[scan, 4, 4] = 16 - scans[scan, 4, 4]
    for module in (digits_module, scenes_module):
        monkeypatch.setattr(module, "load_scans", lambda: (scans, labels))
    with pytest.raises(DatasetMismatchError, match=f"{data.name}.{which}.*scikit-learn=="):
        getattr(get_dataset(data.name), which)()


def test_normalize_centres_the_training_images(data: Dataset, splits: dict[str, Split]):
    images = splits["train"].images
    x = data.normalize(images)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=0.03)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=0.03)
    exact = (images[0, :, 5, 7].double() / 255 - torch.tensor(data.mean)) / torch.tensor(data.std)
    assert torch.allclose(x[0, :, 5, 7].double(), exact, atol=1e-5)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 32, 32), torch.zeros(3, 32, 32).byte()])
def test_normalize_refuses_other_tensors(data: Dataset, wrong: torch.Tensor):
    with pytest.raises(ValueError, match="normalize: argument images is .*allowed: torch.uint8"):
        data.normalize(wrong)


def scenes_of(**changes: int) -> Split:
    """The same 1,000 scenes up to `changes` in their constants."""
    config = dataclasses.replace(CONFIG, **changes)
    return draw_scenes(Stream(5), "train", 1000, config)


def quarters(split: Split, value: torch.Tensor) -> list[float]:
    """Means of `value` over four ranges of difficulty, easy to hard."""
    quarter = (split.difficulty * 4).long().clamp(max=3)
    return [value[quarter == k].float().mean().item() for k in range(4)]


@pytest.mark.parametrize("constant", ["noise_hard", "clutter_opacity"])
def test_noise_and_clutter_grow_with_difficulty(constant: str):
    split, without = scenes_of(), scenes_of(**{constant: 0})
    energy = (split.images.float() - without.images.float()).square().mean((1, 2, 3))
    means = quarters(split, energy)
    assert means == sorted(means) and means[3] > 4 * means[0]


def test_digit_colour_differs_enough_from_the_ground_it_covers():
    hard = np.arange(257)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (257, 3, 1, 1)) + rng.integers(-30, 31, (257, 3, 32, 32))
    image = np.clip(image, 0, 255).astype(np.int32)
    opacity = rng.integers(0, 257, (257, 32, 32), dtype=np.int32)
    colour = scenes_module._draw_colour(Stream(4), image, opacity, hard, CONFIG)
    assert colour.shape == (257, 3, 1, 1) and 0 <= colour.min() and colour.max() <= 255
    luma = np.array([0.299, 0.587, 0.114])
    ground = (image * opacity[:, None]).sum((2, 3)) / opacity.sum((1, 2))[:, None]
    contrast = np.abs((colour[:, :, 0, 0] - ground) @ luma)
    easy, hardest = CONFIG.contrast_easy, CONFIG.contrast_hard
    # Luma is rounded to integers three times on the way.
    assert (contrast >= easy + (hardest - easy) * hard / 256 - 3).all()
    assert contrast[:64].mean() > contrast[64:192].mean() > contrast[192:].mean()


def test_easiest_scenes_are_a_strong_digit_on_a_plain_ground():
    split = draw_scenes(Stream(8), "train", 4000)
    easy = split.images[split.difficulty == 0].float()
    assert len(easy) > 5
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    luma = (easy * weights).sum(1)
    border = torch.cat([luma[:, 0], luma[:, -1]], 1)
    assert border.std(1).median() < 1
    deviation = (luma - border.median(1).values[:, None, None]).abs().amax((1, 2))
    assert deviation.min() >= CONFIG.contrast_easy - 3


def test_difficulty_is_uniform(splits: dict[str, Split], data: Dataset):
    if data.name == "digits32":
        assert all(split.difficulty is None for split in splits.values())
        return
    for split in splits.values():
        assert split.difficulty.dtype == torch.float32
        counts = torch.histc(split.difficulty, 4, 0, 1) / len(split)
        assert torch.allclose(counts, torch.full((4,), 0.25), atol=0.04)


def test_photograph_bands_of_the_splits_do_not_touch():
    bands = list(scenes_module._BANDS.values())
    assert sorted(sum(bands, ())) == [0, 1, 2, 3, 4]
    flat = {which: planes for which, (planes, _) in scenes_module._load_photographs().items()}
    assert flat["train"].shape[1] == 3 * flat["test"].shape[1] == 3 * flat["validation"].shape[1]


def test_place_enlarges_a_glyph_bilinearly():
    glyph = np.array([[[16, 0], [0, 8]]], dtype=np.int32)
    canvas = place(glyph, np.array([4]), np.array([2]), np.array([28]))[0]
    assert canvas[2:6, 28:].tolist() == [
        [256, 192, 64, 0],
        [192, 152, 72, 32],
        [64, 72, 88, 96],
        [0, 32, 96, 128],
    ]
    canvas[2:6, 28:] = 0
    assert not canvas.any()


def test_stream_gives_the_published_numbers():
    stream = Stream(1, 2)
    assert stream.below(1000, 5).tolist() == [448, 430, 419, 277, 821]
    assert stream.permutation(6).tolist() == [0, 1, 4, 5, 3, 2]
    noise = Stream(3).triangular(100_000)
    assert abs(noise.mean()) < 1 and abs(noise.std() - 104.5) < 0.5


def test_names_are_listed_and_unknown_ones_refused():
    assert list_datasets() == ["cifar10", "cifar100", "digits32", "scene_digits"]
    with pytest.raises(ValueError, match="unknown name 'mnist'; allowed: cifar10, cifar100"):
        get_dataset("mnist")


def test_root_is_asked_for_where_it_is_needed_and_only_there(tmp_path):
    with pytest.raises(ValueError, match="'cifar10' is read from a local folder.*pass root="):
        get_dataset("cifar10")
    with pytest.raises(ValueError, match="leave root out"):
        get_dataset("digits32", tmp_path)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_missing_scikit_learn_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    load_scans.cache_clear()
    scenes_module._load_photographs.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install ddi-kernels\[data\]"):
        get_dataset(name)


def test_missing_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    scenes_module._load_photographs.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pillow.*pip install ddi-kernels\[data\]"):
        get_dataset("scene_digits")
