"""From a corpus to a buffer: nothing padded, nothing lost, bounded, evenly drawn, found again."""

import json
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import hosts
import pytest
import torch

from replacement import Host
from replacement.training import SelfGenerated, Settings, train
from replacement.training.buffer import Buffer, Shape, evenly
from replacement.training.corpus import Chunks, open_corpus
from replacement.training.generated import generated, sample
from replacement.training.harvest import Harvester, Sample, harvest
from replacement.training.parallel import Ranks
from replacement.training.randomness import generator

ONE = Ranks()
SMALL = Settings(steps=1, batch=8, features=16, k=2, length=12, prompts=4)
SITES = (SMALL.read, SMALL.write)


def documents(number: int = 200, seed: int = 0) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (number,), generator=random).tolist()
    return [torch.randint(3, hosts.VOCABULARY, (n,), generator=random).tolist() for n in lengths]


def speaker() -> Host:
    return hosts.speaking().host


def read_all(corpus, host: Host | None = None, ranks: Ranks = ONE) -> list[list[int]]:
    """One pass over a corpus."""
    chunks = Chunks(host or speaker(), open_corpus(corpus, ranks), 12)
    found = []
    while True:
        chunk, place = next(chunks), chunks.place()
        if found and place == {"document": 0, "chunk": 1}:
            return found
        found.append(chunk)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_padding_is_never_harvested(family):
    """Prompts of several lengths in one pass give what each gives alone, and nothing else."""
    host = hosts.host(family)
    chunks = [[5, 6, 7], hosts.PROMPT, [9], [0, 0, 0, 4]]  # 0 is also what pads
    got = harvest(host, chunks, SMALL)
    wanted = []
    for chunk in chunks:
        run = host.run(chunk, SITES)
        layers = [torch.stack([run.layer(i)[s] for i in range(host.n_layers)]) for s in SITES]
        wanted.append(torch.stack(layers).permute(2, 0, 1, 3))
    assert got.tokens.tolist() == [token for chunk in chunks for token in chunk]
    assert torch.allclose(got.values, torch.cat(wanted), atol=1e-5)


def test_hooks_are_gone_after_a_harvest():
    host = hosts.host("llama")
    harvest(host, [[5, 6, 7]], SMALL)
    assert not any(point.fwd_hooks for point in host.bridge.hook_dict.values())


def test_first_positions_can_be_left_out():
    chosen = Settings(steps=1, length=12, skip_first=2)
    got = harvest(hosts.host("llama"), [[5, 6, 7], [9], [11, 12, 13, 14]], chosen)
    assert got.tokens.tolist() == [7, 13, 14]


def filled(bound: int, even: bool = False, file: Path | None = None) -> Buffer:
    host = hosts.host("llama")
    source = Harvester(host, Chunks(host, open_corpus(documents(), ONE), 12), SMALL)
    shape = Shape(host.n_layers, host.d_model, host.dtype, host.device, bound, 10**6)
    return Buffer(shape, source, (0, 0), even, file)


@pytest.mark.parametrize("bound", [20_000, 100_000])
def test_a_buffer_stays_within_its_bytes(bound):
    buffer = filled(bound)
    for _ in range(5):
        buffer.fill()
        held = buffer.values.untyped_storage().nbytes()
        held += buffer.tokens.nbytes + buffer.order.nbytes
        assert bound * 0.9 < held <= bound


def test_every_position_of_a_fill_is_used_once():
    buffer = filled(60_000)
    read, write = buffer.take(buffer.shape.capacity)
    assert buffer.fills == 1
    stored = buffer.values.permute(1, 2, 0, 3)
    assert torch.equal(read, stored[0][:, buffer.order])
    assert torch.equal(write, stored[1][:, buffer.order])
    assert sorted(buffer.order.tolist()) == list(range(buffer.shape.capacity))
    assert buffer.order.tolist() != list(range(buffer.shape.capacity))


class Numbered:
    """A source whose activations are the number of the token that they belong to."""

    def __init__(self) -> None:
        self.next = 0

    def samples(self, positions: int) -> Iterator[Sample]:
        tokens = torch.arange(self.next, self.next + 70)
        self.next += 70
        yield Sample(tokens, tokens.float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4))

    def place(self) -> dict[str, int]:
        return {"next": self.next}

    def seek(self, place: Mapping[str, int]) -> None:
        self.next = place["next"]


def test_positions_and_tokens_stay_together():
    shape = Shape(3, 4, torch.float32, torch.device("cpu"), 20_000, 10**6)
    buffer = Buffer(shape, Numbered(), (0, 0))
    for fill in range(3):
        buffer.fill()
        own = buffer.tokens.float().view(-1, 1, 1, 1)
        assert (buffer.values == own).all()
        assert len(buffer.tokens.unique()) == shape.capacity
        read, write = buffer.take(shape.capacity)
        assert torch.equal(read[0, :, 0], buffer.tokens[buffer.order].float())
        assert int(read.min()) >= fill * shape.capacity
        assert torch.equal(read, write)


def test_a_buffer_on_disk_holds_the_same_and_leaves_no_file(tmp_path):
    memory, disk = filled(60_000), filled(60_000, file=tmp_path / "buffer")
    for _ in range(8):
        for ours, theirs in zip(memory.take(50), disk.take(50), strict=True):
            assert torch.equal(ours, theirs)
    assert memory.fills > 1
    assert not list(tmp_path.iterdir())


def test_a_buffer_is_found_again():
    first = filled(60_000)
    for _ in range(7):
        first.take(31)
    again = filled(60_000)
    again.load(json.loads(json.dumps(first.state())))
    for _ in range(7):
        for ours, theirs in zip(first.take(31), again.take(31), strict=True):
            assert torch.equal(ours, theirs)


def test_even_draws_are_even_over_token_types():
    random = torch.Generator().manual_seed(0)
    tokens = torch.tensor([7] * 900 + [8] * 80 + [9] * 15 + [10] * 4 + [11])
    tokens = tokens[torch.randperm(1000, generator=random)]
    drawn = evenly(tokens, torch.randperm(1000, generator=random), random)
    counts = tokens[drawn].unique(return_counts=True)[1]
    assert counts.tolist() == [200] * 5
    of_first = drawn[tokens[drawn] == 7]
    assert len(of_first.unique()) == 200  # of a common type no position twice
    of_rare = drawn[tokens[drawn] == 10].unique(return_counts=True)[1]
    assert of_rare.tolist() == [50] * 4  # of a rare one each as often as the others
    early = tokens[drawn[:100]].unique(return_counts=True)[1]
    assert early.tolist() == [20] * 5  # in every batch, not only over the whole


def test_an_even_buffer_draws_evenly():
    buffer = filled(60_000, even=True)
    buffer.fill()
    assert len(buffer.order) == buffer.shape.capacity
    counts = buffer.tokens[buffer.order].unique(return_counts=True)[1]
    assert int(counts.max() - counts.min()) <= 1
    plain = buffer.tokens.unique(return_counts=True)[1]
    assert int(plain.max() - plain.min()) > 1


def test_texts_jsonl_lists_and_ids_are_the_same_corpus(tmp_path):
    texts = [" Austin is in Texas", "The capital of France is Paris !"]
    (tmp_path / "a.txt").write_text(f"{texts[0]}\n\n{texts[1]}\n")
    lines = [json.dumps({"text": text, "other": 1}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    wanted = [speaker().tokenize(text) for text in texts]
    rows = [{"text": text} for text in texts]
    files = [str(tmp_path / "a.txt"), tmp_path / "a.jsonl"]
    for corpus in (*files, texts, wanted, [torch.tensor(ids) for ids in wanted], rows):
        assert read_all(corpus) == wanted
    assert read_all(files) == wanted * 2


def test_long_documents_are_cut_and_nothing_is_lost():
    long = list(range(3, 33))
    chunks = read_all([long, [40]])
    assert chunks == [long[:12], long[12:24], long[24:], [40]]


def test_ranks_share_a_corpus():
    whole = documents(11)
    shares = [read_all(whole, ranks=Ranks(rank, 3)) for rank in range(3)]
    assert shares == [whole[rank::3] for rank in range(3)]


def test_a_corpus_is_gone_on_with_in_the_middle_of_a_document():
    corpus = [list(range(3, 33)), [40], list(range(10, 40))]
    chunks = Chunks(speaker(), open_corpus(corpus, ONE), 12)
    for _ in range(5):
        next(chunks)
    again = Chunks(speaker(), open_corpus(corpus, ONE), 12)
    again.seek(chunks.place())
    assert [next(again) for _ in range(12)] == [next(chunks) for _ in range(12)]


def test_a_dataset_of_the_hub_is_streamed(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        return [{"text": " Austin"}, {"text": " Dallas is"}]

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read_all("owner/name") == [speaker().tokenize(t) for t in (" Austin", " Dallas is")]
    assert asked == [("owner/name", "train", True)]


def test_without_datasets_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        open_corpus("owner/name", ONE)


def test_what_the_hub_says_is_passed_on(monkeypatch):
    def load_dataset(*_, **__):
        raise FileNotFoundError("no such dataset\nand more")

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(ValueError, match=r"did not yield it: no such dataset$"):
        open_corpus("owner/name", ONE)


def exhausted():
    ids = iter([[5, 6, 7]])
    list(ids)
    return ids


@pytest.mark.parametrize(
    ("corpus", "match"),
    [
        ("nix.txt", "there is no corpus file nix.txt"),
        ("./nix", "there is no corpus file ./nix"),
        (Path("nix"), "there is no corpus file nix"),
        (Path("."), "there is no corpus file"),
        (7, "cannot be int"),
        ([], "holds no text"),
        (["", "  "], "holds no text"),
        (exhausted(), "ended and cannot be read again"),
        ([[5, 999]], "token id 999 is outside the vocabulary"),
        ([7], "a document is int"),
        ([{"content": "x"}], 'no field "text"'),
    ],
)
def test_a_bad_corpus_is_refused(corpus, match):
    with pytest.raises(ValueError, match=match):
        train(speaker(), corpus, SMALL)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", b'{"text": " is"}\n{"text": ', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": 3}\n', r'line 1 has no field "text"'),
        ("a.jsonl", b"[1]\n", r'line 1 has no field "text"'),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.txt", b"", "holds no text"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        train(speaker(), tmp_path / name, SMALL)


def test_texts_need_a_tokenizer():
    with pytest.raises(ValueError, match="has no tokenizer"):
        train(hosts.host("llama"), ["The capital"], SMALL)


def test_a_corpus_that_ends_while_training_says_so():
    once = iter(documents(30))
    chosen = Settings(steps=200, batch=64, features=16, k=2, length=12, buffer_bytes=60_000)
    with pytest.raises(ValueError, match="fewer steps"):
        train(hosts.host("llama"), once, chosen)


def test_positions_left_out_of_short_documents_leave_nothing():
    chosen = Settings(steps=1, length=12, skip_first=3)
    with pytest.raises(ValueError, match="skip_first=3 leaves nothing"):
        train(hosts.host("llama"), [[5, 6], [7]], chosen)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_sampled_text_follows_the_host_probabilities(family):
    """After the one first token, tokens come as often as the host says."""
    host = hosts.host(family)
    chosen = Settings(steps=1, length=3, prompts=4000)
    rows = sample(host, chosen, 1.5, generator(0))
    assert rows[:, 0].unique().tolist() == [1]  # the host's beginning of text
    for prefix in (rows[:1, :1], rows[rows[:, 1] == rows[:, 1].mode().values][:1, :2]):
        length = prefix.shape[1]
        after = rows[(rows[:, :length] == prefix).all(dim=1)][:, length]
        wanted = torch.softmax(host.run(prefix[0].tolist()).logits[-1] / 1.5, dim=0)
        seen = after.bincount(minlength=hosts.VOCABULARY) / len(after)
        noise = (wanted * (1 - wanted) / len(after)).sqrt()
        assert ((seen - wanted).abs() < 5 * noise + 2 / len(after)).all()


def test_sampled_documents_can_be_found_again():
    host = hosts.host("llama")
    documents = generated(host, SelfGenerated(), SMALL, ONE)
    begun = documents(0)
    wanted = [next(begun) for _ in range(12)]
    later = documents(6)
    assert [next(later) for _ in range(6)] == wanted[6:]
    other = generated(host, SelfGenerated(), SMALL, Ranks(1, 2))(0)
    assert [next(other) for _ in range(12)] != wanted
    assert all(2 not in document[1:] for document in wanted)  # cut at the end of text


def test_a_temperature_must_be_positive():
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be more than 0"):
        SelfGenerated(temperature=0.0)
