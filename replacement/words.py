"""Words that a tokenizer does not know, and the nearest that it does."""

import difflib
from collections.abc import Iterable
from typing import Any


def unknown_word(tokenizer: Any, text: str, special: bool) -> str | None:
    """The first stretch of a text that became the unknown token; None where all is known.

    It is found through the tokenizer's offsets. An unknown token that stands for no text (many
    tokenizers start every text with a token that also serves as this one), or that the text itself
    spells out, is meant; a tokenizer that keeps no offsets is not judged.
    """
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    for index, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        word = text[start:end].strip()
        if index == tokenizer.unk_token_id and word and word != tokenizer.unk_token:
            return word
    return None


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known texts nearest to a word, spaces around them and case aside.

    The same word in another case comes first, then names of which it is a part, then by spelling.
    """
    wanted = word.strip().casefold()
    texts: dict[str, list[str]] = {}
    for text in {text.strip(): text for text in known}.values():
        texts.setdefault(text.strip().casefold(), []).append(text)
    texts.pop("", None)
    parts = [text for text in texts if wanted and f" {wanted} " in f" {text} "]
    near = difflib.get_close_matches(wanted, texts, n=count, cutoff=0.6)
    found = dict.fromkeys([*sorted(parts, key=len), *near])
    return [text for key in found for text in texts[key]][:count]
