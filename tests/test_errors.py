import pytest
from tiny import ToyDataset, make_tiny_backbone

import clipviz
from clipviz.errors import choose, unknown
from clipviz.methods import METHODS
from clipviz.prompts import ClassPrompts, make_prompts
from clipviz.training.run import Run
from clipviz.widgets.live import LiveMonitor


def test_a_valid_name_passes():
    assert choose("model", "birds", ["birds"]) == "birds"


def test_an_unknown_name_gets_the_nearest_choice_and_all_others():
    with pytest.raises(ValueError, match="unknown model") as error:
        choose("model", "BIRSD", ["birds", "ViT-B-32"])
    assert str(error.value) == "unknown model 'BIRSD'; did you mean 'birds'? Choose from 'birds', 'ViT-B-32'"


def test_a_name_unlike_all_others_gets_no_guess():
    assert str(unknown("split", "x\ny", ["train"])) == r"unknown split 'x\ny'. Choose from 'train'"


def test_many_choices_are_cut_short():
    assert str(unknown("class", "q", map(str, range(100)))).endswith("'11' and 88 more")


def test_of_many_choices_those_most_alike_are_shown():
    said = str(unknown("model", "vit-l14", [*map(str, range(100)), "ViT-L-14", "ViT-L-16", "ViT-B-14"]))
    assert "did you mean 'ViT-L-14'? Choose from 'ViT-L-14', 'ViT-B-14', 'ViT-L-16', " in said or (
        "did you mean 'ViT-L-14'? Choose from 'ViT-L-14', 'ViT-L-16', 'ViT-B-14', " in said
    )
    assert said.endswith(" and 91 more")


@pytest.mark.parametrize("path", [None, 5])
@pytest.mark.parametrize("opens", [clipviz.load_dataset, clipviz.load_backbone, clipviz.open, LiveMonitor])
def test_what_is_no_path_is_told_so(opens, path):
    with pytest.raises(ValueError, match=f"must be named by a text or a path, got {path!r}"):
        opens(path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"class_names": "cat"}, "class names: wanted a list of texts, got 'cat'"),
        ({"class_names": 5}, "class names: wanted a list of texts, got 5"),
        ({"templates": 5}, "templates: wanted a list of texts, got 5"),
        ({"descriptions": ["a cat."]}, "a file of descriptions .* must be named by a text or a path, got .'a cat.'."),
    ],
)
def test_texts_of_another_kind_are_told_so(texts, message):
    with pytest.raises(ValueError, match=message):
        make_prompts(**{"class_names": ("cat",), "templates": None, "descriptions": None, **texts})


def test_a_run_has_a_folder_with_a_name_and_a_probe_of_images():
    data = ToyDataset(4)
    method = METHODS["zero_shot"](make_tiny_backbone(), data.prompts)
    with pytest.raises(ValueError, match="the folder of a run must be named by a text or a path, got ''"):
        Run(method, data, folder="")
    with pytest.raises(ValueError, match=r"probe must be images, .* got str"):
        Run(method, data, probe="x")


@pytest.mark.parametrize("name", METHODS)
def test_model_and_prompts_in_the_wrong_order_are_told_so(name):
    with pytest.raises(ValueError, match=f"{name} needs a model .load_backbone., got ClassPrompts"):
        METHODS[name](ClassPrompts(("cat",)), None)
