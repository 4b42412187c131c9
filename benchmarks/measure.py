"""What the benchmarks share: random cases, a check of their answers, and how memory is measured."""

import multiprocessing
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import graphs
    from replacement import ReplacementModel, Transcoder

TOLERANCE = 1e-4  # of a row's scale: the books, and the edges against autograd


@dataclass(frozen=True)
class Case:
    """A random Llama (RMSNorm, rotary, grouped queries, SwiGLU) and a random dictionary for it."""

    kind: str  # "per-layer", "cross-layer" or "neurons"
    tokens: int
    active: int = 16  # features at each layer and position
    features: int = 2048
    layers: int = 12
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    vocabulary: int = 512
    seed: int = 0

    @property
    def ids(self) -> list[int]:
        """The prompt: random tokens."""
        return torch.randint(self.vocabulary, (self.tokens,), generator=self.draws(1)).tolist()

    def draws(self, number: int) -> torch.Generator:
        """A source of random numbers for one part of the case."""
        return torch.Generator().manual_seed(1000 * self.seed + number)

    @cached_property
    def transcoders(self) -> "list[Transcoder]":
        """The dictionary's layers, the same at each call; none for neurons."""
        return [] if self.kind == "neurons" else [_transcoder(self, m) for m in range(self.layers)]

    def host(self) -> Any:
        """A new Hugging Face model, the same weights at each call."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.tokens,
            initializer_range=self.width**-0.5,  # keeps the size of what passes through a matrix
            tie_word_embeddings=False,
        )
        config._attn_implementation = "eager"  # the one that shows its patterns
        torch.manual_seed(self.seed)
        model = LlamaForCausalLM(config).float().eval()
        generator = self.draws(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # ones would hide a norm whose weight was forgotten
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    def model(self) -> "ReplacementModel":
        """The host with its dictionary, on the CPU."""
        from replacement import Dictionary, Host, ReplacementModel, neuron_dictionary

        host = Host.open(self.host(), device="cpu")
        if self.kind == "neurons":
            return ReplacementModel(host, neuron_dictionary(host))
        return ReplacementModel(host, Dictionary(self.transcoders))


def _transcoder(case: Case, layer: int) -> "Transcoder":
    from replacement import TopK, Transcoder

    generator = case.draws(100 + layer)

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    to = range(layer, case.layers) if case.kind == "cross-layer" else [layer]
    return Transcoder(
        reader=rows(case.features, case.width),
        writers={m: rows(case.features, case.width) for m in to},
        activation=TopK(case.active),
        reader_bias=0.1 * torch.randn(case.features, generator=generator),
        writer_biases={layer: 0.1 * rows(case.width)},
    )


def verify(case: Case, graph: "graphs.AttributionGraph", rows: Sequence[int]) -> dict[str, float]:
    """The graph's imbalance, and the distance of some rows from autograd; stop if one is large."""
    oracle = _Oracle(case)
    found = {
        "discrepancy": float(graph.discrepancy),
        "autograd": max(oracle.distance(graph, row) for row in rows),
    }
    for name, value in found.items():
        if not value <= TOLERANCE:
            raise SystemExit(f"wrong answer: {name} is {value:.1e} of a row's scale, no timing.")
    return found


class _Oracle:
    """The case's own Hugging Face model, frozen by hand and differentiated by autograd.

    Patterns and denominators are constants and every MLP's output is a leaf, so the derivative of
    what a target reads with respect to a leaf, times what a source wrote there, is its edge.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.host = case, case.host().requires_grad_(False)
        with torch.no_grad():
            out = self.host.model(torch.tensor([case.ids]), output_attentions=True)
        assert out.attentions is not None
        self.embeddings = self.host.model.embed_tokens(torch.tensor(case.ids)).requires_grad_()
        self.leaves: list[Tensor] = []
        self.reads: list[Tensor] = []
        x = self.embeddings
        for layer, patterns in zip(self.host.model.layers, out.attentions, strict=True):
            x = x + self._attend(layer, patterns[0], x)
            self.reads.append(_normed(layer.post_attention_layernorm, x))
            self.leaves.append(layer.mlp(self.reads[-1].detach()).requires_grad_())
            x = x + self.leaves[-1]
        self.final = _normed(self.host.model.norm, x)
        self.inputs = [read.detach() for read in self.reads]

    def _attend(self, layer: Any, pattern: Tensor, x: Tensor) -> Tensor:
        case, attention = self.case, layer.self_attn
        value = attention.v_proj(_normed(layer.input_layernorm, x))
        value = value.view(case.tokens, case.kv_heads, -1).transpose(0, 1)
        value = value.repeat_interleave(case.heads // case.kv_heads, 0)
        return attention.o_proj((pattern @ value).transpose(0, 1).reshape(case.tokens, -1))

    def distance(self, graph: "graphs.AttributionGraph", row: int) -> float:
        """The largest difference of an edge of this row, relative to the row's scale."""
        node = graph.nodes.loc[graph.targets[row]]
        leaves = [*self.leaves, self.embeddings]
        value = self._target(node.kind, int(node.layer), int(node.position), int(node.feature))
        pulled = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        pulled = [
            torch.zeros_like(x) if g is None else g for g, x in zip(pulled, leaves, strict=True)
        ]
        table = graph.nodes.loc[graph.sources]
        wanted = np.zeros(len(table))
        from_token = pulled[-1] * self.embeddings.detach()
        wanted[(table["kind"] == "token").to_numpy()] = from_token.sum(1)
        for m in range(self.case.layers):
            self._fill(m, pulled, table, wanted)
        single = ~table["kind"].isin(["bias", "remainder"]).to_numpy()
        return float(np.abs(edges(graph)[row] - wanted)[single].max() / graph.scale[row])

    def _target(self, kind: str, layer: int, position: int, feature: int) -> Tensor:
        if kind == "logit":
            matrix = self.host.lm_head.weight
            return self.final[position] @ (matrix[feature] - matrix.mean(0))
        x = self.reads[layer][position]
        if self.case.kind != "neurons":
            reader = self.case.transcoders[layer]
            assert reader.reader_bias is not None
            return reader.reader[feature] @ x + reader.reader_bias[feature]
        mlp = self.host.model.layers[layer].mlp
        gate, up = mlp.gate_proj.weight[feature] @ x, mlp.up_proj.weight[feature] @ x
        own = mlp.act_fn(gate) * up  # shared half and half between the product's two factors
        return (own / gate).detach() * gate / 2 + (own / up).detach() * up / 2

    def _fill(self, m: int, pulled: list[Tensor], table: Any, wanted: np.ndarray) -> None:
        """The edges from layer m's features and errors."""
        mine = (table["layer"] == m).to_numpy()
        here = mine & (table["kind"] == "feature").to_numpy()
        positions, features, active = (
            torch.tensor(table.loc[here, name].to_numpy())
            for name in ("position", "feature", "activation")
        )
        total = torch.zeros(len(features))
        for layer, writer in self._writers(m).items():
            total += (writer[features] * pulled[layer][positions]).sum(1)
        wanted[here] = total.double() * active
        errors = mine & (table["kind"] == "error").to_numpy()
        if errors.any():
            wanted[errors] = (pulled[m] * self.errors[m]).sum(1)

    def _writers(self, m: int) -> dict[int, Tensor]:
        if self.case.kind != "neurons":
            return dict(self.case.transcoders[m].writers)
        return {m: self.host.model.layers[m].mlp.down_proj.weight.T}

    @cached_property
    def errors(self) -> list[Tensor]:
        """What the dictionary misses of each MLP's output."""
        left = [leaf.detach().clone() for leaf in self.leaves]
        for m, layer in enumerate(self.case.transcoders):
            assert layer.reader_bias is not None
            values = self.inputs[m] @ layer.reader.T + layer.reader_bias
            best = values.topk(self.case.active)
            active = torch.zeros_like(values).scatter(1, best.indices, best.values.relu())
            for to, writer in layer.writers.items():
                left[to] -= active @ writer
            for to, bias in layer.biases.items():
                left[to] -= bias
        return left


def _normed(norm: Any, x: Tensor) -> Tensor:
    scale = (x.detach().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    return x / scale * norm.weight


def edges(graph: "graphs.AttributionGraph") -> np.ndarray:
    """The edges of a graph that was just traced: dense."""
    assert isinstance(graph.edges, np.ndarray)
    return graph.edges


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a fresh process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory() -> int:
    """The most bytes that this process has held in memory at once."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss starts at what the parent process held
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def memory() -> int:
    """The bytes that this process holds in memory now (on Linux; elsewhere, its peak so far)."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return peak_memory()


def describe() -> dict[str, str | int]:
    """The machine, for the record."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
