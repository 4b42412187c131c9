"""Runs in the peer's environment: trace one case with circuit-tracer and save what came out.

    cd FOLDER && python -I _circuit_tracer_worker.py

FOLDER holds the case and request.json; peer.json and peer.safetensors are added to it. `-I` keeps
this script's own folder off the import path, where circuit_tracer.py would hide the package.
Nothing of ours is imported here, and no pickle is written: arrays go to safetensors.
"""

import json
import logging
import time
from importlib.metadata import version
from pathlib import Path

import torch
from circuit_tracer import attribute
from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.loading_from_pretrained import convert_hf_model_config
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def load_dictionary(case: dict, folder: Path, device: torch.device):
    """The peer's own classes, all weights in memory (its lazy loading would only cost it time)."""
    if case["kind"] == "cross-layer":
        return load_clt(
            str(folder), **HOOKS, device=device, dtype=torch.float32, lazy_decoder=False
        )
    layers = {}
    for layer in range(case["layers"]):
        layers[layer] = SingleLayerTranscoder(
            case["width"], case["features"], TopK(case["active"]), layer,
            device=device, dtype=torch.float32,
        )  # fmt: skip
        layers[layer].load_state_dict(load_file(folder / f"layer_{layer}.safetensors"))
    return TranscoderSet(layers, **HOOKS)


def load_model(case: dict, device: torch.device) -> TransformerLensReplacementModel:
    """What its from_pretrained_and_transcoders does, which takes no folder for a name. The path
    is a relative one: transformer-lens guesses the architecture from the letters in it."""
    host = Path("host")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(host / "tokenizer.json"), name_or_path=str(host), add_bos_token=True,
        bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
    )  # fmt: skip
    settings = convert_hf_model_config(str(host))
    settings |= {"model_name": host.name, "device": str(device), "dtype": torch.float32}
    model = TransformerLensReplacementModel(HookedTransformerConfig(**settings), tokenizer)
    weights = AutoModelForCausalLM.from_pretrained(host, dtype=torch.float32)
    model.load_and_process_state_dict(
        convert_llama_weights(weights, model.cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
    )
    model._configure_replacement_model(load_dictionary(case, Path("dictionary"), device))
    return model


class Phases(logging.Filter):
    """When the peer announced each of its phases. A filter, because it logs nothing at all to a
    logger that has a handler already."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.times.append((record.getMessage(), time.perf_counter()))
        return False

    def at(self, start: str) -> float:
        return next(when for message, when in self.times if message.startswith(start))


def trace(model: TransformerLensReplacementModel, request: dict) -> tuple[Graph, dict[str, float]]:
    """attribute(), and the seconds of all of it and of its two attribution phases."""
    phases = Phases()
    logging.getLogger("attribution").addFilter(phases)
    start, cpu = time.perf_counter(), time.process_time()
    graph = attribute(
        torch.tensor(request["case"]["ids"]),
        model,
        batch_size=request["batch"],
        max_feature_nodes=request["budget"],
        update_interval=request["interval"],
        verbose=True,
    )
    wall = time.perf_counter() - start
    attribution = phases.at("Feature attributions completed") - phases.at("Phase 3")
    return graph, {"wall": wall, "attribution": attribution, "cpu": time.process_time() - cpu}


def arrays(graph: Graph) -> dict[str, torch.Tensor]:
    """The graph as arrays: rows are selected features then logits, columns are selected features,
    errors (layer by layer) and tokens. The rest of its square matrix is zero by construction."""
    features, logits = len(graph.selected_features), len(graph.logit_targets)
    matrix = graph.adjacency_matrix.cpu()
    return {
        "edges": torch.cat([matrix[:features], matrix[-logits:]])[:, :-logits].contiguous(),
        "active": graph.active_features.cpu().contiguous(),
        "activations": graph.activation_values.cpu().contiguous(),
        "selected": graph.selected_features.cpu(),
        "logits": graph.logit_token_ids.cpu(),
        "probabilities": graph.logit_probabilities.cpu(),
    }


def main() -> None:
    request = json.loads(Path("request.json").read_text())
    torch.set_num_threads(request["threads"])
    model = load_model(request["case"], torch.device(request["device"]))
    graph, seconds = trace(model, request)
    saved = arrays(graph)
    with torch.no_grad():
        saved["output"] = model(torch.tensor([request["case"]["ids"]]))[0, -1].cpu()
    save_file(saved, "peer.safetensors")
    packages = ("circuit-tracer", "torch", "transformers", "transformer-lens")
    report = {
        "seconds": seconds,
        "rows": len(saved["edges"]),
        "batch": request["batch"],
        "versions": {name: version(name) for name in packages},
    }
    Path("peer.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
