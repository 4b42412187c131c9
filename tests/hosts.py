"""Tiny random hosts of every supported family, and random dictionaries of every kind.

Weights are large enough that patterns are peaked, norms far from trivial (weights not 1, biases
not 0, epsilon not negligible), windows shorter than the prompt and soft caps felt: a tracer that
leaves any of these out gives other numbers.
"""

import atexit
import os
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

import replacement
from replacement import BatchTopK, Dictionary, Host, JumpReLU, ReLU, TopK, Transcoder
from replacement.model import ReplacementModel

VOCABULARY = 50
WIDTH = 32
FEATURES = 24
PROMPT = [3, 14, 15, 9, 26, 5, 35]  # longer than twice the windows of three tokens

_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = {
    **_TOKENS,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "rms_norm_eps": 0.03}
_GEMMA = {**_GROUPED, "head_dim": 12, "attention_bias": True, "query_pre_attn_scalar": 10}
_GPT = {**_TOKENS, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 16}
_MIXED = {**_GROUPED, "num_experts_per_tok": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**_GPT, "n_inner": 24, "layer_norm_epsilon": 0.03}),
    "gptj": ("GPTJConfig", {**_GPT, "n_inner": 24, "rotary_dim": 4, "layer_norm_epsilon": 0.03}),
    "neox": ("GPTNeoXConfig", {**_COMMON, "layer_norm_eps": 0.03}),
    "llama": ("LlamaConfig", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 3, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {**_GROUPED}),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 12, "attention_bias": True}),
    "gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 12, "attention_bias": True}),
    "gemma2": (
        "Gemma2Config",
        {
            **_GEMMA,
            "sliding_window": 3,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_GEMMA,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi": ("PhiConfig", {**_COMMON, "num_key_value_heads": 2, "layer_norm_eps": 0.03}),
    "phi3": ("Phi3Config", {**_GROUPED, "pad_token_id": 0, "sliding_window": 3}),
    "mixtral": ("MixtralConfig", {**_MIXED, "num_local_experts": 4, "sliding_window": None}),
    "olmoe": ("OlmoeConfig", {**_MIXED, "num_experts": 4, "attention_bias": True}),
}
FAMILIES = tuple(CONFIGS)
PARALLEL = ("gptj", "neox", "phi")
EXPERTS = ("mixtral", "olmoe")
ONE_NORM = ("gptj", "phi")  # attention and MLP read the same norm

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def build(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A new Hugging Face model; the same weights, to the bit, at every call."""
    name, options = CONFIGS[family]
    config = getattr(transformers, name)(**{**options, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32
        )
    generator = torch.Generator().manual_seed(zlib.crc32(family.encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norms' weights and all biases: keep the one, or the zero
                parameter += 0.25 * noise
            else:
                parameter.copy_(0.25 * noise)
    if family in EXPERTS:  # the fused kernels know no float64
        model.set_experts_implementation("eager")
    return model.to(dtype).eval()


@cache
def host(family: str, dtype: torch.dtype = torch.float32) -> Host:
    """The family's host, opened once per session."""
    return Host.open(build(family, dtype))


def draw(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers that float32 holds exactly, so that both precisions see the same weights."""
    return scale * torch.randn(shape, generator=generator)


def _layer(
    index: int,
    writes_to: list[int],
    activation: Any,
    generator: torch.Generator,
    skip: bool,
    width: int,
) -> Transcoder:
    return Transcoder(
        reader=draw(generator, FEATURES, width, scale=0.3),
        writers={m: draw(generator, FEATURES, width, scale=0.2) for m in writes_to},
        activation=activation,
        reader_bias=draw(generator, FEATURES, scale=0.2),
        writer_biases={m: draw(generator, width, scale=0.2) for m in writes_to},
        skip=draw(generator, width, width, scale=0.1) if skip else None,
    )


def dictionary(
    layers: int,
    activation: Any,
    read: str = "mlp.hook_in",
    write: str = "hook_mlp_out",
    skip: bool = False,
    cross: bool = False,
    width: int = WIDTH,
    seed: int = 0,
) -> Dictionary:
    """A random dictionary; `activation` may be a function of the generator."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(layers):
        writes_to = list(range(index, layers)) if cross else [index]
        chosen = activation(generator) if activation is jump else activation
        made.append(_layer(index, writes_to, chosen, generator, skip, width))
    return Dictionary(made, read=read, write=write, name="random")


def jump(generator: torch.Generator) -> JumpReLU:
    """A JumpReLU with a threshold for each feature."""
    return JumpReLU(0.8 * torch.rand(FEATURES, generator=generator))


KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation": ReLU()},
    "jumprelu": {"activation": jump, "read": "ln2.hook_normalized", "write": "mlp.hook_out"},
    "topk": {"activation": TopK(5), "read": "hook_resid_mid"},
    "batchtopk": {"activation": BatchTopK(4), "write": "mlp.hook_out"},
    "batchtopk-threshold": {"activation": BatchTopK(4, 0.5), "read": "ln2.hook_normalized"},
    "skip": {"activation": TopK(5), "write": "mlp.hook_out", "skip": True},
    "skip-normalized": {"activation": jump, "read": "ln2.hook_normalized", "skip": True},
    "cross": {"activation": TopK(5), "cross": True},
    "cross-skip": {
        "activation": ReLU(),
        "cross": True,
        "skip": True,
        "read": "hook_resid_mid",
        "write": "mlp.hook_out",
    },
    "neurons": {},
}


def options(family: str, kind: str) -> dict[str, Any]:
    """A kind's options, reading where this family has such a site."""
    chosen = dict(KINDS[kind])
    absent = {"hook_resid_mid"} if family in PARALLEL else set()
    absent |= {"ln2.hook_normalized"} if family in ONE_NORM else set()
    if chosen.get("read") in absent:
        chosen["read"] = "mlp.hook_in"
    return chosen


@cache
def model(family: str, kind: str, dtype: torch.dtype = torch.float32) -> ReplacementModel:
    """A host of the family with a dictionary of the kind."""
    opened = host(family, dtype)
    if kind == "neurons":
        return replacement.load(opened, dictionary="neurons")
    return ReplacementModel(opened, dictionary(opened.n_layers, **options(family, kind)))


WORDS = ("<unk>", "<s>", "</s>", "Austin", " Austin", " Dallas", " Texas", "Texas", " capital")
WORDS = (*WORDS, " of", " is", "The", " the", " Paris", " France", " in", "!", "user", "reply")
WORDS = (*WORDS, *(f" word{i}" for i in range(VOCABULARY - len(WORDS))))
TEXT = "The capital of Texas is"
TEMPLATE = "<s>user{{ messages[0]['content'] }}{% if add_generation_prompt %}!reply{% endif %}"


def words(chat: bool = False) -> Any:
    """A tokenizer of whole words, most of which carry the space before them, as GPT-2's do."""
    table = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    pattern = tokenizers.Regex("<s>|user|reply| ?[A-Za-z0-9]+|!")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, behavior="isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        chat_template=TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )


@cache
def speaking(family: str = "llama", dtype: torch.dtype = torch.float32) -> ReplacementModel:
    """A replacement model that reads and writes words."""
    opened = Host.open(build(family, dtype), tokenizer=words())
    return ReplacementModel(opened, dictionary(opened.n_layers, TopK(5)))


def save(folder: Path, family: str = "llama", chat: bool | None = False, **changes: Any) -> Path:
    """A host as a folder; with `chat=None` without a tokenizer."""
    build(family, **changes).save_pretrained(folder)
    if chat is not None:
        words(chat).save_pretrained(folder)
    return folder


@cache
def smollm2() -> Host:
    """The bundled model, converted at most once a session (half a minute)."""
    kept = os.environ.get("CIRCUITS_CACHE")
    if kept is None:
        scratch = tempfile.TemporaryDirectory()
        atexit.register(scratch.cleanup)
        os.environ["CIRCUITS_CACHE"] = scratch.name
    try:
        return Host.open("smollm2")
    finally:
        if kept is None:
            del os.environ["CIRCUITS_CACHE"]
