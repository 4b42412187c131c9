"""Atlas's tokenizer: every word of the world is one token, and so is a name of several words."""

from collections.abc import Iterable
from typing import Any

from replacement.atlas.facts import World
from replacement.atlas.sentences import Sentence

PAD, UNKNOWN = "<pad>", "<unk>"


def vocabulary(world: World, sentences: Iterable[Sentence]) -> list[str]:
    """Every word that a sentence holds, in order of first use; names of several stay whole."""
    names = {name for name in _names(world) if " " in name}
    longest = max(len(name.split()) for name in names)
    words: dict[str, None] = {}
    for sentence in sentences:
        words.update(dict.fromkeys(_split(sentence.prompt, names, longest)))
        words[sentence.answer] = None
    return list(words)


def _split(text: str, names: set[str], longest: int) -> list[str]:
    """Words of a text, the longest name first."""
    parts, found, at = text.split(), [], 0
    while at < len(parts):
        for size in range(min(longest, len(parts) - at), 0, -1):
            word = " ".join(parts[at : at + size])
            if size == 1 or word in names:
                found.append(word)
                at += size
                break
    return found


def _names(world: World) -> Iterable[str]:
    """What may be written with a space inside."""
    for region in (*world.states, *world.countries):
        yield from (region.name, region.capital, *region.cities)
    for country in world.countries:
        yield from (country.currency, country.language, country.continent)
    for illness in world.diagnoses:
        yield from (illness.name, *illness.symptoms, illness.test, illness.treatment)


def tokenizer(words: list[str]) -> Any:
    """A Hugging Face tokenizer of these words; any other word becomes <unk>."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: n for n, word in enumerate([PAD, UNKNOWN, *words])}
    built = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A word with a space inside is found before the text is split; the longest wins.
    several = sorted((word for word in words if " " in word), key=len, reverse=True)
    built.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in several])
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        unk_token=UNKNOWN,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
