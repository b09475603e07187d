"""Names that texts use for methods and models, and what becomes of those that nobody knows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import UnknownNameError
from rankwise.experiments.schema import method_registry
from rankwise.research.mapping import ablation_of, method_named, method_of, model_of, short_name


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ("GLoRA", "glora"),
        ("Rank allocation by gradient norms (GLoRA)", "glora"),
        ("uniform LoRA of rank 8 on all matrices", "lora"),
        ("LoRA-8, everywhere", "lora"),
        ("LoRA (r = 8)", "lora"),
        ("plain LoRA", "lora"),
        ("AdaLoRA with the same number of parameters", "adalora"),
        ("Full FT", "full"),
        ("full fine-tuning", "full"),
        ("static GaLoRA (pruned)", "galora"),
        ("CoGaLoRA (gates alone)", "cogalora"),
        ("Depth and rank per input (RAD-LoRA)", "radlora"),
        ("DoRA", "dora"),
        ("random allocation", "random"),
    ],
)
def test_known_names(said, method):
    assert method_named(said) == method


@pytest.mark.parametrize(
    "said",
    ["LoRA-FA", "LoRA+", "QLoRA", "GGLoRA", "noise-aware LoRA", "Noise-aware LoRA (NALoRA)", "pruned AdaLoRA", ""],
)
def test_names_that_are_other_methods(said):
    """A word that is part of a known name makes nothing that known method."""
    assert method_named(said) is None


def test_every_registered_name_is_known():
    assert {name: method_named(name) for name in method_registry()} == {name: name for name in method_registry()}


def test_an_unknown_method_is_an_error_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'glora'") as caught:
        method_of("GGLoRA")
    assert "--map" in str(caught.value)
    assert "--plugin" in str(caught.value)


def test_what_a_person_says_counts():
    assert method_of("GGLoRA", extra={"gg-lora": "glora"}) == "glora"
    assert method_of("AdaLoRA", "comparative", {"AdaLoRA": "adalora"}) == "adalora"


def test_a_published_method_is_compared_with_as_its_users_have_it():
    assert method_of("AdaLoRA", "comparative") == "peft_adalora"
    assert method_of("AdaLoRA", "proposed") == "adalora"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("RAD-LoRA without rank branch", ("radlora", "cogalora")),
        ("RAD-LoRA without gate branch", ("radlora", None)),
        ("CoGaLoRA λ too high (0.4)", ("cogalora", None)),
        ("CoGaLoRA", None),
        ("uniform LoRA with rank 8", None),
    ],
)
def test_variants(said, found):
    assert ablation_of(said) == found


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("DeBERTa-v3-base (86M)", "microsoft/deberta-v3-base"),
        ("BERT-base-uncased", "google-bert/bert-base-uncased"),
        ("MiniLM", "minilm"),
        ("some/model", "some/model"),
        ("a new model", "a new model"),
    ],
)
def test_models(said, name):
    assert model_of(said) == name


@given(st.text(max_size=80), st.lists(st.text(max_size=12), max_size=3))
def test_names_of_arms_are_names(said, taken):
    found = short_name(said, taken)
    assert found[0].isalpha()
    assert found.isascii()
    assert found.lower() not in {name.lower() for name in taken}


@given(st.text(max_size=200))
def test_any_text_is_a_name_or_an_error(said):
    try:
        assert method_of(said) in method_registry()
    except UnknownNameError:
        assert method_named(said) is None
