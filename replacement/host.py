"""Host: the language model being traced. Tokens in, activations out."""

import copy
import operator
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement import bundled
from replacement.blocks import Block, NormWeights, block, norm
from replacement.sources import check_supported, fetch
from replacement.words import nearest, unknown_word

# What a trace needs of every layer, beside what its dictionary reads.
_SITES = (
    "attn.hook_pattern",
    "ln1.hook_scale",
    "ln2.hook_scale",
    "ln1_post.hook_scale",
    "ln2_post.hook_scale",
)
_ENDS = ("blocks.0.hook_in", "ln_final.hook_scale", "ln_final.hook_out", "unembed.hook_out")


@dataclass(frozen=True, eq=False)
class Run:
    """One prompt through the host: its tokens and what was asked for of its activations."""

    ids: list[int]
    tokens: list[str]
    captured: Mapping[str, Tensor]
    logits: Float[Tensor, "positions vocabulary"]

    def __getitem__(self, name: str) -> Tensor:
        return self.captured[name]

    def only(self, *names: str) -> "Run":
        """The same run without its other activations (patterns take the most memory)."""
        captured = {name: self.captured[name] for name in names}
        return Run(self.ids, self.tokens, captured, self.logits)

    def layer(self, index: int) -> dict[str, Tensor]:
        """The captured activations of one layer, by their names within it."""
        prefix = f"blocks.{index}."
        return {k[len(prefix) :]: v for k, v in self.captured.items() if k.startswith(prefix)}


@dataclass(frozen=True, eq=False)
class Host:
    """A language model opened for tracing. Make one with `Host.open`.

    `dictionaries` are the folders of those that ship with it, by name; the first is its default.
    """

    name: str
    bridge: Any
    tokenizer: Any
    chat: bool = False
    dictionaries: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        source: Any = bundled.DEFAULT_HOST,
        tokenizer: Any = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        chat: bool = False,
    ) -> "Host":
        """Open a model: a bundled name, a folder, a GGUF file, a Hugging Face name or an object.

        `dtype` is float32 unless given; a model object keeps its own. `device="auto"` takes CUDA,
        then MPS, then the CPU; an object stays where it is. `chat=True` applies the tokenizer's
        chat template to every text prompt. A model object is left as it is: the host is a copy
        of its modules that shares its weights.
        """
        name, model, found = fetch(source, dtype)
        tokenizer = tokenizer if tokenizer is not None else found
        check_supported(model.config)
        place = best_device() if device == "auto" else torch.device(device)
        if model is source:
            place = model.device if device == "auto" else place
            model = _copy(model, shared=place == model.device and dtype in (None, model.dtype))
        model = model.to(device=place, dtype=dtype or model.dtype)
        if chat and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(f"chat=True, but the tokenizer of {name} has no chat template.")
        shipped = bundled.dictionaries(source)
        return cls(name, _bridge(model.eval(), tokenizer), tokenizer, chat, shipped)

    @property
    def n_layers(self) -> int:
        """How many layers the host has."""
        return self.bridge.cfg.n_layers

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return self.bridge.cfg.d_model

    @property
    def vocabulary(self) -> int:
        """How many tokens the host can predict."""
        return self.unembedding.shape[1]

    @property
    def context(self) -> int:
        """The longest prompt, in tokens."""
        return self.bridge.cfg.n_ctx

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the host's weights."""
        return self.unembedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the host's weights are."""
        return self.unembedding.device

    @cached_property
    def unembedding(self) -> Float[Tensor, "d_model vocabulary"]:
        """The matrix from the final norm's output to logits."""
        return self.bridge.unembed.original_component.weight.detach().T

    @property
    def unembedding_bias(self) -> Float[Tensor, " vocabulary"] | None:
        """The constant that the unembedding adds, where there is one."""
        bias = getattr(self.bridge.unembed.original_component, "bias", None)
        return None if bias is None else bias.detach()

    @property
    def final_norm(self) -> NormWeights:
        """The norm before the unembedding."""
        return norm(self.bridge.ln_final, "ln_final.hook_scale")

    def block(self, index: int) -> Block:
        """The linear parts of one layer."""
        return block(self.bridge, index)

    def tokenize(
        self, prompt: str | Sequence[int] | Tensor, longest: int | None = None
    ) -> list[int]:
        """Token ids of a prompt, only the first `longest`; ids are checked and passed through."""
        ids = self._encode(prompt, known=True) if isinstance(prompt, str) else _ids(prompt)
        ids = ids[:longest]
        if not ids:
            raise ValueError("the prompt is empty; give at least one token.")
        if len(ids) > self.context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and {self.name} reads at most {self.context}."
            )
        outside = [i for i in ids if not 0 <= i < self.vocabulary]
        if outside:
            raise ValueError(
                f"token id {outside[0]} is outside the vocabulary of {self.name} "
                f"(0 to {self.vocabulary - 1})."
            )
        return ids

    def _encode(self, prompt: str, known: bool = False) -> list[int]:
        """Token ids of a text; with `known`, a word that the tokenizer lacks is refused."""
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer; give token ids, or tokenizer=.")
        if not prompt:
            raise ValueError("the prompt is empty; give at least one token.")
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        special = not self.chat  # the template has written them
        ids = list(self.tokenizer(prompt, add_special_tokens=special).input_ids)
        if known and self.tokenizer.unk_token_id in ids:
            self._check_known(prompt, special)
        return ids

    def _check_known(self, text: str, special: bool) -> None:
        word = unknown_word(self.tokenizer, text, special)
        if word is not None:
            near = ", ".join(t if t == t.strip() else repr(t) for t in self.nearest(word))
            rest = f"; the nearest that it knows: {near}." if near else ", nor any like it."
            raise ValueError(f"{self.name} does not know the word {word!r}{rest}")

    def nearest(self, word: str) -> list[str]:
        """The tokens whose texts are nearest to a word: three at most, and none if all are far."""
        return nearest(word, map(self.token, range(self.vocabulary)))

    def token(self, index: int) -> str:
        """The text of one token id; without a tokenizer, the id itself."""
        if self.tokenizer is None:
            return str(index)
        text = self.tokenizer.decode([index])
        # SentencePiece decoders drop the space that a first word stands for.
        spaced = str(self.tokenizer.convert_ids_to_tokens(index)).startswith("▁")
        return " " + text if spaced and not text.startswith(" ") else text

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids; without a tokenizer, the ids themselves."""
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(ids)

    @torch.no_grad()
    def run(self, ids: Sequence[int], sites: Sequence[str] = ()) -> Run:
        """One forward pass; keeps what a trace needs and every layer's activation at `sites`."""
        wanted = {*_SITES, *sites}

        def keep(name: str) -> bool:
            return name in _ENDS or (name.startswith("blocks.") and name.split(".", 2)[2] in wanted)

        ids = self.tokenize(ids)
        batch = torch.tensor([ids], device=self.device)
        logits, cache = self.bridge.run_with_cache(batch, names_filter=keep)
        precision = torch.promote_types(self.dtype, torch.float32)
        # Routers work on (tokens, experts); everything else has the batch's axis in front.
        captured = {k: (v[0] if v.ndim > 2 else v).to(precision) for k, v in cache.items()}
        tokens = [self.token(i) for i in ids]
        return Run(ids, tokens, captured, logits[0].to(precision))


def _ids(prompt: Sequence[int] | Tensor) -> list[int]:
    """Token ids from a list or from a tensor, with or without a batch of one."""
    if isinstance(prompt, Tensor):
        if prompt.ndim == 2 and len(prompt) == 1:
            prompt = prompt[0]
        if prompt.ndim != 1:
            raise ValueError(f"token ids have shape {tuple(prompt.shape)}; give one prompt.")
        prompt = prompt.tolist()
    try:
        return [operator.index(i) for i in prompt]
    except TypeError as error:
        raise ValueError(f"token ids must be whole numbers, not {list(prompt)[:3]}.") from error


def best_device() -> torch.device:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _copy(model: Any, shared: bool) -> Any:
    """New modules around the same weights; weights of their own where those are to change."""
    tensors = [*model.parameters(), *model.buffers()] if shared else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _bridge(model: Any, tokenizer: Any) -> Any:
    """Wrap a Hugging Face model so that every family shows the same activations."""
    from transformer_lens.model_bridge import TransformerBridge

    if model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")
    if getattr(model.config, "_experts_implementation", None) not in (None, "eager"):
        model.set_experts_implementation("eager")  # the fused kernels know no float64
    model.config.architectures = [type(model).__name__]  # a model made from its config has none
    weight = next(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        # The bridge reads the config from a folder even when it is handed the model, and
        # edits the tokenizer that it is handed.
        model.config.save_pretrained(Path(folder))
        try:
            bridge = TransformerBridge.boot_transformers(
                folder,
                hf_model=model,
                tokenizer=copy.deepcopy(tokenizer) if tokenizer is not None else _no_tokenizer(),
                device=str(weight.device),
                dtype=weight.dtype,
            )
        except (AssertionError, AttributeError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"transformer-lens cannot show the inside of this {type(model).__name__}: "
                f"{str(error) or type(error).__name__}"
            ) from error
    if weight.dtype == torch.float64:
        _exact_norms(bridge)
    return bridge


def _exact_norms(bridge: Any) -> None:
    """Hugging Face computes RMSNorm in float32 whatever the model's precision; undo that."""
    for module in bridge.modules():
        if hasattr(module, "use_native_layernorm_autograd"):
            module.use_native_layernorm_autograd = False


def _no_tokenizer() -> Any:
    """The bridge insists on a tokenizer; ids alone need none."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
