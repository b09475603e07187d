"""Arguments of a block row by row, and caches whose layers hold some rows."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticLayer

from rankwise.adapters.conditional.block_rows import SomeRows, UnknownArgument, note_rows, spares_rows, take_rows

ROWS = torch.tensor([1, 3])


def test_rows_are_taken_where_there_are_any():
    mask, cos = torch.arange(8.0).view(4, 2), torch.randn(1, 2, 3)
    given = {
        "attention_mask": mask,
        "position_embeddings": (cos, torch.arange(4.0)[:, None, None]),
        "cache_position": torch.arange(4),  # as many tokens as examples
        "use_cache": True,
        "encoder_hidden_states": None,
    }
    found = take_rows(given, ROWS, 4)
    assert torch.equal(found["attention_mask"], mask[[1, 3]])
    assert found["position_embeddings"][0] is cos
    assert found["position_embeddings"][1].flatten().tolist() == [1.0, 3.0]
    assert found["cache_position"] is given["cache_position"]
    assert (found["use_cache"], found["encoder_hidden_states"]) == (True, None)


@pytest.mark.parametrize("value", [torch.zeros(4, 2), object()])
def test_what_nobody_knows_is_not_guessed(value):
    with pytest.raises(UnknownArgument):
        take_rows({"novelty": value}, ROWS, 4)


def test_unknown_tensor_with_one_row_is_shared_by_several_examples():
    table = torch.zeros(1, 7, 2)
    assert take_rows({"novelty": table}, ROWS, 4)["novelty"] is table
    with pytest.raises(UnknownArgument):
        take_rows({"novelty": table}, torch.tensor([0]), 1)  # the example's own, as far as anyone knows


@pytest.mark.parametrize("name", ["alibi", "attention_mask"])
def test_rows_of_examples_and_heads_are_not_guessed(name):
    with pytest.raises(UnknownArgument):
        take_rows({name: torch.zeros(8, 1, 5)}, ROWS, 4)


def filled(rows):
    cache = DynamicCache()
    cache.update(torch.arange(6.0)[:, None, None, None], torch.zeros(6, 1, 1, 1), 0)
    cache.update(10 * rows.float()[:, None, None, None], torch.zeros(len(rows), 1, 1, 1), 1)
    note_rows(cache, rows, 6)
    return cache


def test_cache_layer_with_some_rows_follows_beams():
    """Two beams each for three examples; the last two examples are kept."""
    cache = filled(torch.tensor([2, 3, 4, 5]))
    assert [type(layer) for layer in cache.layers] == [DynamicLayer, SomeRows]
    cache.reorder_cache(torch.tensor([1, 1, 3, 2, 5, 5]))
    assert cache.layers[0].keys.flatten().tolist() == [1, 1, 3, 2, 5, 5]
    assert cache.layers[1].keys.flatten().tolist() == [30, 20, 50, 50]


def test_cache_layer_with_some_rows_is_repeated():
    cache = filled(torch.tensor([1, 4]))
    cache.batch_repeat_interleave(2)
    assert cache.layers[1].rows.tolist() == [2, 3, 8, 9]
    cache.reorder_cache(torch.tensor([0, 1, 3, 2, 4, 5, 6, 7, 9, 8, 10, 11]))
    assert cache.layers[1].keys.flatten().tolist() == [10, 10, 40, 40]


def test_what_would_mix_rows_is_refused():
    cache = filled(torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="different examples changed places"):
        cache.reorder_cache(torch.tensor([0, 2, 1, 3, 4, 5]))
    with pytest.raises(ValueError, match="cannot be taken out"):
        cache.batch_select_indices(torch.tensor([0]))


def test_only_plain_caches_spare_rows():
    class Other(DynamicCache):
        pass

    mixture = DynamicCache()
    mixture.layers = [DynamicLayer(), StaticLayer(8)]
    assert spares_rows(filled(torch.tensor([1])))
    assert not spares_rows(Other())
    assert not spares_rows(mixture)
