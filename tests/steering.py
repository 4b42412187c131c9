"""Interventions by hand, on Hugging Face models that no bridge has touched.

Nothing is shared with the package but the dictionary's weights (and with the oracle of traces,
the activation functions written entry by entry).
"""

from contextlib import ExitStack

import torch
from hosts import PROMPT, build
from oracle import _neurons, activate, blocks, freeze_norms, norm_before_mlp

from replacement.neurons import Neurons


class Hand:
    """One model; `run` gives logits, and by layer what the features are and the MLP's output."""

    def __init__(self, family, dictionary, dtype):
        self.model, self.dictionary = build(family, dtype), dictionary
        freeze_norms(self.model)  # in the model's own precision; forward is what it was
        self.late = dictionary.write == "hook_mlp_out"

    def run(self, change=None, clean=None, held=range(0), ids=PROMPT):
        """`change(layer, activations)` gives new ones; held layers hold to the clean run."""
        self.change = change or (lambda layer, activations: activations)
        self.clean, self.held, self.seen, self.new, self.outputs = clean, held, {}, {}, {}
        self.deltas = {}
        with ExitStack() as stack, torch.no_grad():
            for m, block in enumerate(blocks(self.model)):
                for handle in self._hooks(m, block):
                    stack.callback(handle.remove)
            logits = self.model(torch.tensor([ids])).logits[0]
        return logits, self.seen, self.outputs

    def _hooks(self, m, block):
        site = block.mlp
        if self.late and hasattr(block, "post_feedforward_layernorm"):
            site = block.post_feedforward_layernorm
        inputs = {}
        yield block.mlp.register_forward_pre_hook(lambda _, args: inputs.update(x=args[0][0]))
        yield site.register_forward_hook(lambda _, args, y: self._write(m, block, inputs["x"], y))

    def _write(self, m, block, x, y):
        layer, norm = self.dictionary.layers[m], norm_before_mlp(block)
        if isinstance(layer, Neurons):
            active, _, writer, _ = _neurons(block.mlp, x)
            writers = {m: writer}
        else:
            at = {"ln2.hook_normalized": norm.normalized, "hook_resid_mid": norm.read}
            x = at[self.dictionary.read][0] if self.dictionary.read in at else x
            values = x @ layer.reader.to(x).T + layer.reader_bias.to(x)
            active, writers = activate(layer.activation, values), layer.writers
        before = self.clean[0][m] if m in self.held else active
        new = self.change(m, before.clone())
        self.seen[m] = torch.where(new != before, new, active)
        self.deltas[m] = (new - before, writers)
        out = self.clean[1][m] if m in self.held else y[0].clone()
        self.outputs[m] = out.clone()
        for delta, own in self.deltas.values():
            if m in own:
                out = out + delta @ own[m].to(out)
        return out[None].to(y)


def dense(table, widths, column="after"):
    """An outcome's table of features as one (positions, features) tensor a layer."""
    out = [torch.zeros(len(PROMPT), width, dtype=torch.float64) for width in widths]
    for row in table.itertuples():
        out[row.layer][row.position, row.feature] = getattr(row, column)
    return out


def live_hooks(host):
    """All hooks on the host, ours or PyTorch's."""
    modules = list(host.bridge.modules()) + list(host.bridge.original_model.modules())
    own = [h for point in host.bridge.hook_dict.values() for h in point.fwd_hooks]
    torchs = [h for m in modules for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    return len(own), len(torchs)
