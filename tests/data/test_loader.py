import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from clipviz.data import ViewConfig, ViewLoader, as_images, eval_batches, eval_view, load_dataset, make_views

CONFIG = ViewConfig(8, strong=True, crops=2)


def everything(loader, epoch=0):
    batches = list(loader.epoch(epoch))
    return [
        torch.cat(tensors)
        for tensors in zip(
            *((b.views.weak, b.views.strong, b.views.crops, b.index, b.target) for b in batches), strict=True
        )
    ]


def test_a_batch_has_the_documented_shapes_and_ranges(array_dataset):
    batch = next(ViewLoader(array_dataset, CONFIG, batch_size=4, seed=0).epoch(0))
    assert len(batch) == 4
    assert batch.views.weak.shape == batch.views.strong.shape == (4, 3, 8, 8)
    assert batch.views.crops.shape == (4, 2, 3, 8, 8)
    for views in (batch.views.weak, batch.views.strong, batch.views.crops):
        assert views.dtype == torch.float32
        assert views.is_contiguous()
        assert 0 <= views.min() < views.max() <= 1
    assert batch.index.dtype == batch.target.dtype == torch.int64
    assert batch.target.tolist() == array_dataset.targets[batch.index.numpy()].tolist()


def test_views_not_asked_for_are_none(array_dataset):
    views = next(ViewLoader(array_dataset, ViewConfig(8), 4, 0).epoch(0)).views
    assert views.strong is None
    assert views.crops is None


def test_an_epoch_holds_every_image_once_and_the_last_batch_is_smaller(array_dataset):
    loader = ViewLoader(array_dataset, ViewConfig(8), batch_size=5, seed=0)
    sizes = [len(batch) for batch in loader.epoch(0)]
    assert sizes == [5, 5, 3]
    assert len(loader) == 3
    assert sorted(everything(ViewLoader(array_dataset, CONFIG, 5, 0))[3].tolist()) == list(range(13))


def test_a_batch_size_beyond_the_data_set_gives_one_batch(array_dataset):
    assert [len(b) for b in ViewLoader(array_dataset, ViewConfig(8), 64, 0).epoch(0)] == [13]


def test_the_order_depends_on_seed_and_epoch(array_dataset):
    orders = {
        (seed, epoch): tuple(everything(ViewLoader(array_dataset, CONFIG, 5, seed), epoch)[3].tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4


def test_a_view_is_that_of_its_image_whatever_the_batch(array_dataset):
    weak, _, crops, index, _ = everything(ViewLoader(array_dataset, CONFIG, 6, seed=3), epoch=2)
    for row, i in enumerate(index.tolist()):
        views = make_views(array_dataset.image(i), CONFIG, seed=3, epoch=2, index=i)
        assert torch.equal(weak[row], as_images(torch.tensor(views.weak)))
        assert torch.equal(crops[row], as_images(torch.tensor(views.crops)))


def test_workers_change_nothing(array_dataset):
    alone = everything(ViewLoader(array_dataset, CONFIG, 4, seed=0, workers=0), epoch=1)
    shared = everything(ViewLoader(array_dataset, CONFIG, 4, seed=0, workers=2), epoch=1)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("spec", ["birds/fog", "folder", "list"])
def test_workers_can_be_sent_what_they_need_where_they_are_not_forked(spec, tmp_path):
    """On Windows and macOS, whose workers begin with nothing."""
    for i in range(4):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (60 * i, 0, 0)).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,label\nphotos/a/0.png,a\nphotos/b/1.png,b\n")
    found = {"folder": tmp_path / "photos", "list": tmp_path / "list.csv"}.get(spec, spec)
    here = ViewLoader(load_dataset(found, n=2), CONFIG, 2, seed=0)
    there = pickle.loads(pickle.dumps(here._pixels))
    pairs = zip(here._pixels((0, np.arange(2))), there((0, np.arange(2))), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(array_dataset, workers):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    list(ViewLoader(array_dataset, CONFIG, 4, seed=0, workers=workers).epoch(0))
    assert (torch.rand(1), np.random.rand()) == expected


def test_an_epoch_can_be_taken_up_in_its_middle(array_dataset):
    loader = ViewLoader(array_dataset, CONFIG, 4, seed=0)
    whole, rest = list(loader.epoch(1)), list(loader.epoch(1, first_step=2))
    assert len(rest) == len(whole) - 2
    assert torch.equal(rest[0].views.strong, whole[2].views.strong)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"seed": -1}, {"workers": -1}])
def test_numbers_out_of_range_are_refused(array_dataset, arguments):
    with pytest.raises(ValueError, match="a loader needs"):
        ViewLoader(array_dataset, CONFIG, **{"batch_size": 4, "seed": 0, **arguments})


def test_evaluation_batches_come_in_order(array_dataset):
    batches = list(eval_batches(array_dataset, size=8, batch_size=5))
    assert [len(index) for _, index in batches] == [5, 5, 3]
    assert torch.cat([index for _, index in batches]).tolist() == list(range(13))
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images[7], as_images(torch.tensor(eval_view(array_dataset.image(7), 8))))


def test_evaluation_batches_of_chosen_images(array_dataset):
    assert torch.cat([i for _, i in eval_batches(array_dataset, 8, 2, index=[4, 0, 9])]).tolist() == [4, 0, 9]
    assert list(eval_batches(array_dataset, 8, 2, index=[])) == []


def test_uint8_becomes_the_unit_interval_with_channels_first():
    pixels = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)
    pixels[1, 2, 5, 0] = 255
    images = as_images(pixels)
    assert images.shape == (2, 3, 4, 6)
    assert images[1, 0, 2, 5] == 1
    assert images.sum() == 1
