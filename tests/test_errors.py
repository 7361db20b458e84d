import pytest

from clipviz.errors import choose, unknown
from clipviz.methods import METHODS
from clipviz.prompts import ClassPrompts


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


@pytest.mark.parametrize("name", METHODS)
def test_model_and_prompts_in_the_wrong_order_are_told_so(name):
    with pytest.raises(ValueError, match=f"{name} needs a model .load_backbone., got ClassPrompts"):
        METHODS[name](ClassPrompts(("cat",)), None)
