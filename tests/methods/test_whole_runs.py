"""Whole runs of microCLIP, DPA and NtUA against straight-line code that shares nothing with clipviz but the views.

Everything is written out once more from the papers' description, in float64: tower, value path, heads, pseudo-labels,
losses, learning rate, AdamW with its groups, what is per epoch and what lives on. So the order of operations is tested,
not only the pieces: three epochs of three steps, the last batch smaller.
"""

import math

import numpy as np
import open_clip
import pytest
import torch
from tiny import ToyDataset, make_tiny_backbone

from clipviz.data.base import ViewConfig
from clipviz.data.batches.loader import ViewLoader
from clipviz.events import StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.cache import CacheBatches
from clipviz.methods.dpa import DPA, PRESETS, DPAConfig
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.prompts import ClassPrompts
from clipviz.training.loop import adapt

SCHEDULE = AdaptConfig(epochs=3, batch_size=3, lr=2e-3)
SEED, WIDTH, HEADS, LAYERS, CLASSES = 7, 64, 4, 2, 3
TEMPLATES = ("a photo of a {}.", "a {}.", "one of many {}s on gray")
DESCRIPTIONS = {
    "red square": ("a square as red as fire", "it is red"),
    "green square": ("a square like grass", "it is green", "leaves have its color"),
    "blue square": ("the sky in a square",),
}


# ----------------------------------------------------------------------------------------------- the tower


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def layer_norm(state, name, x):
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def tower(state, images):
    """CLS embedding (B, E) and value-path patch tokens (B, N, W) of images in [0, 1]."""
    pixels = (images.double() - 0.5) / 0.25
    tiles = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 16, 192)
    x = tiles @ state["conv1.weight"].reshape(WIDTH, 192).T
    x = torch.cat([state["class_embedding"].expand(len(x), 1, WIDTH), x], 1) + state["positional_embedding"]
    x = layer_norm(state, "ln_pre", x)
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}"

        def mlp(y, block=block):
            hidden = linear(state, f"{block}.mlp.c_fc", layer_norm(state, f"{block}.ln_2", y))
            return linear(state, f"{block}.mlp.c_proj", 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))

        normed = layer_norm(state, f"{block}.ln_1", x)
        qkv = normed @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        mixed = []
        for head in range(HEADS):
            rows = slice(16 * head, 16 * head + 16)
            q, k, v = (part[..., rows] for part in qkv.split(WIDTH, -1))
            mixed.append((q @ k.transpose(1, 2) / 4.0).softmax(-1) @ v)
        values = x + linear(state, f"{block}.attn.out_proj", qkv[..., 2 * WIDTH :])
        values = values + mlp(values)
        x = x + linear(state, f"{block}.attn.out_proj", torch.cat(mixed, -1))
        x = x + mlp(x)
    cls = unit(layer_norm(state, "ln_post", x[:, 0]) @ state["proj"])
    return cls, layer_norm(state, "ln_post", values[:, 1:])


def raw_text(backbone, sentences):
    return backbone.model.encode_text(open_clip.SimpleTokenizer(context_length=24)(list(sentences)))


# ----------------------------------------------------------------------------------------------- the optimizer


class AdamW:
    """Loshchilov & Hutter, on named tensors; the rate comes with every step."""

    def __init__(self, parameters, decay, eps=1e-8):
        self.parameters, self.decay, self.eps = parameters, decay, eps
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
        self.t = 0

    def step(self, loss, n_steps):
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        rate = 2e-6 + (SCHEDULE.lr - 2e-6) / 2 * (1 + math.cos(math.pi * self.t / n_steps))
        self.t += 1
        with torch.no_grad():
            for (name, p), gradient in zip(self.parameters.items(), gradients, strict=True):
                first, second = self.moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                p.mul_(1 - rate * self.decay(name))
                p.sub_(rate * first / (1 - 0.9**self.t) / ((second / (1 - 0.999**self.t)).sqrt() + self.eps))


# ----------------------------------------------------------------------------------------------- two runs of each


def start(build, needs):
    """Model, trained method, its steps, the reference's own state and the views of each epoch."""
    dataset = ToyDataset(n=7)
    dataset.prompts = ClassPrompts(dataset.class_names, TEMPLATES, DESCRIPTIONS)
    backbone = make_tiny_backbone()
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.model.visual.parameters():  # as drawn, patches hardly differ and biases are zero
        parameter.data = parameter + 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    backbone = backbone.double()
    state = {name: value.clone() for name, value in backbone.visual.state_dict().items()}
    method = build(backbone, dataset.prompts).double()
    events = list(adapt(method, dataset, SCHEDULE, seed=SEED))
    loader = ViewLoader(dataset, ViewConfig(32, True, *needs), SCHEDULE.batch_size, SEED)
    epochs = [list(loader.epoch(epoch)) for epoch in range(SCHEDULE.epochs)]
    return backbone, method, [e for e in events if isinstance(e, StepFinished)], state, epochs


def norms_of(state):
    return {name: value.requires_grad_() for name, value in state.items() if "ln_" in name}


def check_weights(method, norms, own):
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert set(trained) == {f"backbone.model.visual.{name}" for name in norms} | set(own)
    for name, wanted in {**{f"backbone.model.visual.{n}": p for n, p in norms.items()}, **own}.items():
        torch.testing.assert_close(trained[name].detach(), wanted.detach(), rtol=1e-7, atol=1e-9, msg=name)


def salient(patches, tau, kind, full):
    """NCut masks by numpy, one image at a time; everything where a share `full` of all pairs is connected."""
    masks = []
    for tokens in patches.detach().numpy():
        tokens = tokens / np.linalg.norm(tokens, axis=1, keepdims=True) if kind == "cosine" else tokens
        graph = np.where(tokens @ tokens.T > tau, 1.0, 1e-6)
        if ((graph == 1).sum() - 16) / (16 * 15) >= full:
            masks.append(np.ones(16, bool))
            continue
        degree = graph.sum(1)
        scale = 1 / (np.sqrt(degree) + 1e-6)
        values, vectors = np.linalg.eigh(scale[:, None] * (np.diag(degree) - graph) * scale)
        f = vectors[:, 1] * np.sign(vectors[np.abs(vectors[:, 1]).argmax(), 1])
        assert values[2] - values[1] > 1e-4, "the test's graph must have one second eigenvector"
        assert abs(f.max() + f.min()) > 1e-6, "nor may its sign be left to the solver, as a tau of 0.2 has it here"
        assert np.abs(f - f.std(ddof=1)).min() > 1e-6, "no patch of the test may be on the threshold"
        masks.append(f > f.std(ddof=1))
    return torch.tensor(np.stack(masks)).double()


@pytest.mark.parametrize(
    ("config", "kind", "tau", "gamma"),
    [
        (MicroCLIPConfig(crops=3, name_embedding="raw", tau=8.0, full_density=1.0, fill=(0, 0, 0)), "dot", 8.0, 0.5),
        (MicroCLIPConfig(crops=2, affinity="cosine", tau=0.2, gamma=0.8), "cosine", 0.2, 0.8),
    ],
    ids=["official", "cosine"],
)
def test_microclip(config, kind, tau, gamma):
    backbone, method, steps, state, epochs = start(
        lambda backbone, prompts: MicroCLIP(backbone, prompts, config), (config.crops, (0.5, 0.9), config.fill)
    )
    fixed, learned = [], []
    for name, sentences in DESCRIPTIONS.items():
        templates = raw_text(backbone, [template.replace("{}", name) for template in TEMPLATES])
        t = unit((templates / templates.norm()).mean(0)) if kind == "dot" else unit(unit(templates).mean(0))
        d = unit(raw_text(backbone, sentences))
        fixed.append(unit(sum((row @ t) * row for row in d) / sum(row @ t for row in d)))
        learned.append(unit(d.mean(0)))
    fixed = torch.stack(fixed)
    own = {"learned_classifier": torch.stack(learned), **{f"w_{n}": torch.eye(WIDTH).double() for n in "qkv"}}
    for tensor in own.values():
        tensor.requires_grad_()
    norms = norms_of(state)
    optimizer = AdamW({**norms, **own}, lambda name: 0.1)

    def soap(patches):
        mask = salient(patches, tau, kind, config.full_density)
        query = (mask[..., None] * patches).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        sink = torch.cat([patches, torch.zeros(len(patches), 1, WIDTH)], 1)  # the official code's zero token
        scores = ((query @ own["w_q"].T)[:, None] * (sink @ own["w_k"].T)).sum(-1) / math.sqrt(WIDTH)
        return unit((scores.softmax(-1)[..., None] * (sink @ own["w_v"].T)).sum(1) @ state["proj"])

    scale = backbone.logit_scale
    n = 0
    for batches in epochs:
        mean = None
        for batch in batches:
            with torch.no_grad():
                g, patches = tower(state, batch.views.weak)
                crops = torch.stack([tower(state, batch.views.crops[:, k])[0] for k in range(config.crops)], 1)
                b = unit(((crops * g[:, None]).sum(-1).softmax(1)[..., None] * crops).sum(1))
                fused = unit(0.5 * g + 0.5 * soap(patches))
                z = gamma * b @ fixed.T + (1 - gamma) * fused @ unit(own["learned_classifier"]).T
            labels = z.argmax(1)
            g, patches = tower(state, batch.views.strong)
            logits = scale * (0.5 * g + 0.5 * soap(patches)) @ unit(own["learned_classifier"]).T
            batch_mean = logits.softmax(1).mean(0)
            mean = batch_mean if mean is None else 0.5 * (mean.detach() + batch_mean)
            ce = -logits.log_softmax(1)[range(len(labels)), labels].mean()
            fairness = -mean.log().mean() / 0.5
            step = steps[n]
            assert torch.equal(step.index, batch.index)
            assert torch.equal(step.pseudo.labels, labels)
            torch.testing.assert_close(step.pseudo.probs, (scale * z).softmax(1))
            torch.testing.assert_close(step.losses["cross_entropy"], ce.detach())
            torch.testing.assert_close(step.losses["fairness"], fairness.detach())
            optimizer.step(ce + fairness, n_steps=9)
            n += 1
    assert n == len(steps) == 9
    names = {"w_q": "w_query", "w_k": "w_key", "w_v": "w_value"}
    check_weights(method, norms, {names.get(name, name): p for name, p in own.items()})


@pytest.mark.parametrize(
    "config", [PRESETS["official"], DPAConfig(0.2, 0.2, 0.01, 1.0, window=4)], ids=["official", "window"]
)
def test_dpa(config):
    backbone, method, steps, state, epochs = start(
        lambda backbone, prompts: DPA(backbone, prompts, config), (0, (0.5, 0.9), (123, 117, 104))
    )
    from_templates = {name: [t.replace("{}", name) for t in TEMPLATES] for name in DESCRIPTIONS}
    sentences = from_templates if config.text == "templates" else DESCRIPTIONS
    text = torch.stack([unit(unit(raw_text(backbone, rows)).mean(0)) for rows in sentences.values()]).requires_grad_()
    norms = norms_of(state)
    optimizer = AdamW({**norms, "text": text}, lambda name: 0.0 if name.endswith("bias") else 0.1)
    scale = backbone.logit_scale
    bank, bank_labels = torch.zeros(7, 32).double(), torch.full((7,), -1)
    with torch.no_grad():
        for batch in epochs[0]:
            bank[batch.index] = tower(state, batch.views.weak)[0]
        bank_labels[:] = (scale * bank @ unit(text).T).argmax(1)

    def prototypes():
        rows = [bank[bank_labels == c].mean(0) if (bank_labels == c).any() else text[c] for c in range(CLASSES)]
        return unit(torch.stack(rows)).detach()

    image, window = prototypes(), []
    n = 0
    for batches in epochs:
        for batch in batches:
            with torch.no_grad():
                f, _ = tower(state, batch.views.weak)
                p_text, p_image = ((scale * f @ unit(rows).T).softmax(1) for rows in (text, image))
                window = [*window, p_text.mean(0)][-config.window :]
                aligned = p_text / (sum(window) / len(window))
                aligned = aligned / aligned.sum(1, keepdim=True)
                p = config.a * p_image + (1 - config.a) * aligned
                labels = p.argmax(1)
                rows = range(len(labels))
                weights = p_text[rows, labels] / (p_text.max(1).values + 1e-7)
                weights = weights * p_image[rows, labels] / (p_image.max(1).values + 1e-7)
                bank[batch.index], bank_labels[batch.index] = f, labels
            logits = scale * tower(state, batch.views.strong)[0] @ unit(text).T
            ce = (weights * -logits.log_softmax(1)[rows, labels]).sum() / len(labels)
            predicted = logits.softmax(1).mean(0)
            if config.fairness == "window":
                predicted = (sum(window[:-1]) + predicted) / len(window)
            fairness = config.reg * -predicted.log().mean()
            cosines = config.w * image @ unit(text).T
            alignment = config.align * -cosines.log_softmax(1).diagonal().mean()
            step = steps[n]
            assert torch.equal(step.pseudo.labels, labels)
            torch.testing.assert_close(step.pseudo.probs, p)
            torch.testing.assert_close(step.pseudo.weights, weights)
            for name, value in {"cross_entropy": ce, "fairness": fairness, "alignment": alignment}.items():
                torch.testing.assert_close(step.losses[name], value.detach())
            optimizer.step(ce + fairness + alignment, n_steps=9)
            n += 1
        image = prototypes()
    assert n == len(steps) == 9
    check_weights(method, norms, {"text_prototypes": text})
    torch.testing.assert_close(method.image_prototypes, image)
    torch.testing.assert_close(method.bank_embeddings, bank)
    assert torch.equal(method.bank_labels, bank_labels)


@pytest.mark.parametrize(
    ("config", "has_teacher"),
    [
        (NtUAConfig(shots=2, views=3, text="templates"), True),
        (NtUAConfig(shots=2, views=2, alpha=3.0, beta=1.5, affinity="contrastive", normalized_weights=True), False),
        (NtUAConfig(views=2, rectify=False, affinity="none"), False),
        (NtUAConfig(shots=2, views=2, balanced=False), False),
    ],
    ids=["teacher", "contrastive", "unrefined", "plain sum"],
)
def test_ntua(config, has_teacher):
    teacher = make_tiny_backbone(seed=5, name="teacher", embed_dim=16).double() if has_teacher else None
    backbone, method, steps, state, epochs = start(
        lambda backbone, prompts: NtUA(backbone, prompts, config, teacher=teacher), (config.views, config.view_scale)
    )
    from_templates = {name: [t.replace("{}", name) for t in TEMPLATES] for name in DESCRIPTIONS}
    sentences = from_templates if config.text == "templates" else DESCRIPTIONS

    def classifier(model):
        return torch.stack([unit(unit(raw_text(model, rows)).mean(0)) for rows in sentences.values()])

    text, scale = classifier(backbone), backbone.logit_scale
    views, student, refined = torch.zeros(7, config.views, 32).double(), *torch.zeros(2, 7, CLASSES).double()
    for batch in epochs[0]:
        crops = [batch.views.crops[:, k] for k in range(config.views)]
        crops = [crop.flip(-1) if k % 2 else crop for k, crop in enumerate(crops)]
        views[batch.index] = torch.stack([tower(state, crop)[0] for crop in crops], 1)
        student[batch.index] = (scale * tower(state, batch.views.weak)[0] @ text.T).softmax(1)
        guesses = scale * views[batch.index] @ text.T
        if teacher is not None:
            rows = torch.stack([tower(teacher.visual.state_dict(), crop)[0] for crop in crops], 1)
            guesses = teacher.logit_scale * rows @ classifier(teacher).T
        refined[batch.index] = guesses.softmax(-1).mean(1)
    probs = refined if config.rectify else student
    chosen = []
    for c in range(CLASSES):
        called = [i for i in range(7) if probs[i].argmax() == c]
        chosen += sorted(called, key=lambda i: -probs[i].max())[: config.shots]
    chosen = torch.tensor(sorted(chosen))
    assert torch.equal(method.cache_index, chosen)
    weights, labels = probs[chosen].max(1)
    weights = weights / weights.mean() if config.normalized_weights else weights
    values = weights[:, None] * torch.eye(CLASSES).double()[labels]
    if config.balanced:
        values = torch.stack([config.shots * v / sum(labels == y) for v, y in zip(values, labels, strict=True)])
    torch.testing.assert_close(method.values, values)
    keys = unit(views[chosen].mean(1)).requires_grad_()
    optimizer = AdamW({"keys": keys}, lambda name: 0.1, eps=1e-4)
    batches = CacheBatches(chosen, views[chosen], SCHEDULE.batch_size, SEED)

    def logits(f):
        return scale * f @ text.T + config.alpha * torch.exp(-config.beta * (1 - f @ keys.T)) @ values

    for n, batch in enumerate(batch for epoch in range(SCHEDULE.epochs) for batch in batches.epoch(epoch)):
        f = batch.views.weak
        rows = [chosen.tolist().index(i) for i in batch.index.tolist()]
        y, w = labels[rows], weights[rows]
        mean_keys = values.T @ keys
        prototypes = mean_keys / mean_keys.norm(dim=1, keepdim=True).clamp(min=1e-12)
        if config.affinity == "reliability":
            r = torch.exp(-config.beta * (1 - (f * prototypes[y].detach()).sum(1)))
            w = w * r / torch.stack([r[y == label].max() for label in y])
        ce = (w * -logits(f).log_softmax(1)[range(len(y)), y]).sum() / w.sum()
        loss = ce
        if config.affinity == "contrastive":
            contrast = -(f @ prototypes.T / 0.07).log_softmax(1)[range(len(y)), y]
            affinity = 0.5 * (w * contrast).sum() / w.sum()
            torch.testing.assert_close(steps[n].losses["affinity"], affinity.detach())
            loss = ce + affinity
        assert torch.equal(steps[n].pseudo.labels, y)
        torch.testing.assert_close(steps[n].losses["cross_entropy"], ce.detach())
        optimizer.step(loss, n_steps=SCHEDULE.epochs * len(batches))
    assert len(steps) == SCHEDULE.epochs * len(batches)
    assert [name for name, p in method.named_parameters() if p.requires_grad] == ["keys"]
    torch.testing.assert_close(method.keys.detach(), keys.detach(), rtol=1e-7, atol=1e-9)
    images = epochs[0][0].views.weak
    with torch.no_grad():
        torch.testing.assert_close(method.logits(images), logits(tower(state, images)[0]))
