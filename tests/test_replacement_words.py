"""Unknown words: found where they stand, and answered with the nearest; what is meant is let be."""

import pytest
from hosts import TEXT, save

from replacement import Host
from replacement.training.corpus import Chunks, open_corpus
from replacement.words import nearest, unknown_word

KNOWN = ["small", "Small", " Dallas", "San Antonio", "New York", "New York City", "cold", ""]


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("dallas", [" Dallas"]),
        ("Dalas", [" Dallas"]),
        ("SMALL", ["small", "Small"]),
        ("york", ["New York", "New York City"]),
        ("antonio ", ["San Antonio"]),
        ("xqzzq", []),
        ("", []),
        (" ", []),
    ],
)
def test_the_nearest_words(word, first):
    assert nearest(word, KNOWN)[: len(first) or 3] == first


def test_three_at_most():
    assert len(nearest("word", [f"word{i}" for i in range(9)])) == 3


def words(*known, **special):
    """A tokenizer of whole words, of which `start`, if given, begins every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start = special.pop("start", None)
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, known.index(start))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special)


def test_the_word_is_found_by_its_place():
    known = words("<unk>", "a", "b")
    assert unknown_word(known, "a b", True) is None
    assert unknown_word(known, "a  ccc\tb d", True) == "ccc"


def test_an_unknown_token_that_begins_every_text_is_meant():
    """As GPT-2's one special token is start, end and unknown at once."""
    known = words("<unk>", "a", "b", start="<unk>")
    assert known("a b").input_ids == [0, 1, 2]
    assert unknown_word(known, "a b", True) is None
    assert unknown_word(known, "<unk> a", True) is None
    assert unknown_word(known, "a c", True) == "c"


def test_a_spelling_that_lacks_only_its_space_is_shown_with_it(tmp_path):
    host = Host.open(save(tmp_path / "host"))
    assert host.tokenize(TEXT)
    with pytest.raises(ValueError, match=r"the word 'Dallas'; .* knows: ' Dallas'"):
        host.tokenize("Dallas in Texas")


def test_a_corpus_may_hold_unknown_words(tmp_path):
    """What someone types is refused; one odd word in a million must not stop a training."""
    host = Host.open(save(tmp_path / "host"))
    assert 0 in next(Chunks(host, open_corpus(["Dallas in Texas"]), 8))
