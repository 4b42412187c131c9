"""One random host and one random dictionary, written to a folder that both tools read."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from safetensors.torch import save_file

KINDS = ("per-layer", "cross-layer")


@dataclass(frozen=True)
class Case:
    """Sizes of the host (Llama: RMSNorm, rotary, SwiGLU, grouped queries) and its dictionary."""

    tokens: int
    kind: str
    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    mlp: int = 1536
    vocabulary: int = 2048
    features: int = 4096
    active: int = 40
    seed: int = 0

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def ids(self) -> list[int]:
        """The prompt: <bos>, which the peer would otherwise prepend, then random words."""
        words = torch.randint(
            3, self.vocabulary, (self.tokens - 1,), generator=_generator(self.seed)
        )
        return [0, *words.tolist()]


def quick(tokens: int, kind: str) -> Case:
    """A host that both tools trace in a second: checks the script, measures nothing."""
    return Case(tokens, kind, 4, 192, 6, 2, 256, 256, features=256, active=16)


def full(tokens: int, kind: str) -> Case:
    """The published case. What attribution costs depends on the features that are active, so the
    cross-layer dictionary, which writes to 15.5 layers on average, has 1,024 a layer: 1.1 GB."""
    return Case(tokens, kind, features=4096 if kind == "per-layer" else 1024)


def write(case: Case, folder: Path) -> None:
    """Write case.json, host/ (a Hugging Face folder) and dictionary/ (safetensors)."""
    (folder / "dictionary").mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps({**asdict(case), "ids": case.ids}))
    _write_host(case, folder / "host")
    _write_tokenizer(case, folder / "host")
    draw = _write_per_layer if case.kind == "per-layer" else _write_cross_layer
    generator = _generator(case.seed + 1)
    for layer in range(case.layers):
        draw(case, layer, generator, folder / "dictionary")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _write_host(case: Case, folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        intermediate_size=case.mlp,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        max_position_embeddings=max(256, case.tokens),
        initializer_range=case.width**-0.5,  # keeps the size of what passes through a matrix
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(case.seed)
    host = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            if "norm" in name:  # ones hide a norm whose weight was forgotten
                parameter.add_(0.1 * torch.randn_like(parameter))
    host.save_pretrained(folder)


def _write_tokenizer(case: Case, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<unk>"]
    words = special + [f"w{i}" for i in range(len(special), case.vocabulary)]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def _write_per_layer(case: Case, layer: int, generator: torch.Generator, folder: Path) -> None:
    arrays = {
        "W_enc": _rows((case.features, case.width), generator),
        "W_dec": _rows((case.features, case.width), generator),
        "b_enc": 0.1 * torch.randn(case.features, generator=generator),
        "b_dec": 0.1 * torch.randn(case.width, generator=generator),
    }
    save_file(arrays, folder / f"layer_{layer}.safetensors")


def _write_cross_layer(case: Case, layer: int, generator: torch.Generator, folder: Path) -> None:
    """The peer's own layout. It knows ReLU and JumpReLU here; a normed input meets a reader of
    length one in a standard normal, so this threshold leaves `active` features on average."""
    threshold = NormalDist().inv_cdf(1 - case.active / case.features)
    encoder = {
        f"W_enc_{layer}": _rows((case.features, case.width), generator),
        f"b_enc_{layer}": 0.1 * torch.randn(case.features, generator=generator),
        f"b_dec_{layer}": 0.1 * torch.randn(case.width, generator=generator),
        f"threshold_{layer}": torch.full((case.features,), threshold),
    }
    writers = _rows((case.features, case.layers - layer, case.width), generator)
    save_file(encoder, folder / f"W_enc_{layer}.safetensors")
    save_file({f"W_dec_{layer}": writers}, folder / f"W_dec_{layer}.safetensors")


def _rows(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random vectors of length about one."""
    return torch.randn(shape, generator=generator) * shape[-1] ** -0.5
