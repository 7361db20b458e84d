"""The terms of the loss, each against a slow loop or a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipviz.birds.render import PART_NAMES
from clipviz.birds.world import ATTRIBUTES
from tools.losses import attribute_loss, clip_loss, pair_loss, part_loss, place_loss, seen_in, zoom_loss
from tools.pretraining_data import CARDINALITIES


def test_the_place_loss_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, generator=generator)  # three plans and the background
    cover, plan = torch.tensor([[1.0, 0.6, 0.3, 0.0], [0.0, 0.02, 0.5, 0.4]]), torch.tensor([2, 0])
    inside, outside = [], []
    for b in range(2):
        for n in range(4):
            log_probs = logits[b, n] - logits[b, n].exp().sum().log()
            if cover[b, n] >= 0.5:
                inside.append(-log_probs[plan[b]])
            elif cover[b, n] <= 0.05:
                outside.append(-log_probs[3])
    expected = 0.5 * (sum(inside) / len(inside) + sum(outside) / len(outside))
    torch.testing.assert_close(place_loss(logits, cover, plan), expected)
    assert place_loss(logits, torch.full_like(cover, 0.3), plan) == 0  # nothing but edges


def test_the_pair_loss_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    tokens = F.normalize(torch.randn(2, 5, 3, generator=generator), dim=-1)
    cover = torch.tensor([[1.0, 0.7, 0.3, 0.0, 0.01], [0.0, 0.0, 0.9, 0.5, 0.2]])
    terms = {"bird": [], "background": [], "across": []}
    for b in range(2):
        for i in range(5):
            for j in range(5):
                cosine = float(tokens[b, i] @ tokens[b, j])
                if cover[b, i] >= 0.5 and cover[b, j] >= 0.5:
                    terms["bird"].append(max(0.0, 0.6 - cosine))
                elif cover[b, i] <= 0.05 and cover[b, j] <= 0.05:
                    terms["background"].append(max(0.0, 0.6 - cosine))
                elif cover[b, i] >= 0.5 and cover[b, j] <= 0.05:
                    terms["across"].append(max(0.0, cosine))
    expected = np.mean([np.mean(values) for values in terms.values()])
    assert pair_loss(tokens, cover).item() == pytest.approx(expected, rel=1e-5)


def test_the_part_loss_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, int(CARDINALITIES.sum()), generator=generator)
    shares = torch.rand(3, 5, 14, generator=generator) ** 4
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, CARDINALITIES, (3, len(CARDINALITIES))))
    codes[0] = 0  # whatever can be missing is
    starts, terms = np.concatenate([[0], np.cumsum(CARDINALITIES)]), []
    for a, (name, values) in enumerate(ATTRIBUTES.items()):
        if name == "plan":
            continue
        total, weights = 0.0, 0.0
        for b in range(3):
            value = values[codes[b, a]]
            for n in range(5):
                share = float(shares[b, n, seen_in(name, value)].sum())
                if share >= 0.06:
                    row = logits[b, n, starts[a] : starts[a + 1]]
                    total -= share * float(row[codes[b, a]] - row.logsumexp(0))
                    weights += share
        if weights:
            terms.append(total / weights)
    assert part_loss(logits, shares, codes).item() == pytest.approx(np.mean(terms), rel=1e-5)
    nothing = torch.zeros_like(shares)
    assert part_loss(logits.requires_grad_(), nothing, codes).item() == 0.0


def test_what_is_missing_is_seen_where_it_would_be():
    names = {
        (a, v): [PART_NAMES[i] for i in seen_in(a, v)]
        for a, values in ATTRIBUTES.items()
        if a != "plan"
        for v in values
    }
    assert names["eye_ring", "white"] == ["eye_ring"]
    assert names["eye_ring", "no"] == ["eye"]
    assert names["wing_bars", "no"] == ["wing"]
    assert names["legs", "pink"] == ["legs"]
    assert names["throat", "no"] == []  # the head says nothing of a throat


def test_the_zoom_loss_wants_a_region_to_agree_with_its_own_enlargement():
    zoomed = torch.eye(4)[:3]
    patches = torch.stack([torch.stack([zoomed[b], zoomed[(b + 1) % 3]]) for b in range(3)]).requires_grad_()
    own, other = (torch.tensor([region]).expand(3, 2) for region in ([1.0, 0.0], [0.0, 1.0]))
    scale = torch.tensor(20.0)
    assert zoom_loss(patches, own, zoomed, scale).item() < 1e-6
    assert zoom_loss(patches, other, zoomed, scale).item() == pytest.approx(20.0, abs=1e-3)
    targets = zoomed.clone().requires_grad_()
    zoom_loss(patches, other, targets, scale).backward()
    assert targets.grad is None  # or the zoomed views would come to meet the patches
    assert patches.grad.abs().sum() > 0


def test_the_contrastive_loss_is_that_of_a_slow_loop():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 7), dim=-1) for _ in range(2))
    scale, total = 3.0, 0.0
    for i in range(5):
        rows = torch.stack([scale * images[i] @ texts[j] for j in range(5)])
        columns = torch.stack([scale * images[j] @ texts[i] for j in range(5)])
        total -= rows[i] - rows.exp().sum().log() + columns[i] - columns.exp().sum().log()
    torch.testing.assert_close(clip_loss(images, texts, torch.tensor(scale)), total / 10)


def test_the_attribute_loss_compares_the_values_of_one_attribute_only():
    codes = torch.tensor([[1] * len(CARDINALITIES), [0] * len(CARDINALITIES)])
    logits = torch.zeros(2, int(CARDINALITIES.sum()))
    expected = np.log(CARDINALITIES).mean()
    assert attribute_loss(logits, codes).item() == pytest.approx(expected, rel=1e-6)
    starts = np.concatenate([[0], np.cumsum(CARDINALITIES)[:-1]])
    for row, code in enumerate(codes):
        logits[row, torch.from_numpy(starts) + code] = 50.0
    assert attribute_loss(logits, codes).item() == pytest.approx(0.0, abs=1e-6)
    # whatever another attribute's values score is of no concern
    assert attribute_loss(logits + 7.0, codes).item() == pytest.approx(0.0, abs=1e-6)
