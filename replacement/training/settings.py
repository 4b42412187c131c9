"""Settings: everything that decides a training run, checked when it is made."""

import math
from dataclasses import dataclass, fields

KINDS = ("per-layer", "skip", "cross-layer")
ACTIVATIONS = ("topk", "batchtopk", "jumprelu", "relu")
PENALTIES = ("l1", "l0", "tanh")

# Weights of the penalties, found on the toy model of superposition and on small hosts.
_SPARSITY = {"l1": 0.05, "l0": 0.003, "tanh": 0.003}
_POSITIVE = (
    "features", "k", "steps", "tokens", "batch", "learning_rate", "sparsity", "sharpness",
    "threshold", "bandwidth", "dead_after", "length", "prompts", "buffer_bytes",
    "checkpoint_every", "log_every",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How to train. Give `steps`, or `tokens`: the number of positions to train on.

    Loss = squared error / variance of the host's MLP output, averaged over layers
         + sparsity * penalty + auxiliary * (error of the dead features on the error).

    learning_rate: the highest; 0.03 / sqrt(d_model) unless given.
    penalty: on features with contributions c = a ‖w‖ / sqrt(d_model), where w is what a feature
        writes to all layers together and sqrt(d_model) the norm of a normalised activation: "l1"
        is sum c, "tanh" sum tanh(sharpness * c), "l0" the number of active features. TopK and
        BatchTopK have none. Unless given it is l1 for ReLU, l0 for JumpReLU, and tanh for both
        of them in a cross-layer transcoder.
    threshold, bandwidth: JumpReLU's first threshold and the window in which a pre-activation moves
        it, in units of sqrt(d_model).
    even: draw positions evenly over token types, so that the tokens of a template, which are most
        of a templated corpus, are not most of the loss.
    warmup, decay, ramp: shares of the steps over which the learning rate rises from and falls to
        zero, and over which the penalty's weight rises.
    dead_after: steps without firing after which a feature counts as dead.
    length, prompts: tokens in a prompt (longer documents are cut), and prompts in a forward pass.
    skip_first: positions at the start of every prompt that are left out. Many hosts write
        outliers there, hundreds of times as large as anywhere else.
    """

    kind: str = "per-layer"
    features: int = 1024
    activation: str = "topk"
    k: int = 32
    steps: int | None = None
    tokens: int | None = None
    batch: int = 1024
    learning_rate: float | None = None
    warmup: float = 0.05
    decay: float = 0.2
    weight_decay: float = 0.0
    penalty: str | None = None
    sparsity: float | None = None
    ramp: float = 0.2
    sharpness: float = 5.0
    threshold: float = 0.1
    bandwidth: float = 0.2
    auxiliary: float = 1 / 32
    dead_after: int = 200
    even: bool = False
    read: str = "mlp.hook_in"
    write: str = "hook_mlp_out"
    length: int = 128
    prompts: int = 32
    skip_first: int = 0
    buffer_bytes: int = 2**29
    buffer_on_disk: bool = False
    checkpoint_every: int = 1000
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        if (self.steps is None) == (self.tokens is None):
            raise ValueError(
                f"steps={self.steps} and tokens={self.tokens}: give exactly one of the two; "
                "10000 steps are enough for a first look."
            )
        if self.k > self.features and self.activation in ("topk", "batchtopk"):
            raise ValueError(
                f"k={self.k} exceeds features={self.features}; 32 of 1024 is a usual share."
            )

    def _check_names(self) -> None:
        names = [("kind", KINDS), ("activation", ACTIVATIONS), ("penalty", (None, *PENALTIES))]
        for name, known in names:
            value = getattr(self, name)
            if value not in known:
                listed = ", ".join(str(n) for n in known if n)
                raise ValueError(f"{name}={value!r} is not known; use one of {listed}.")
        if self.penalty is not None and self.activation in ("topk", "batchtopk"):
            raise ValueError(
                f"penalty={self.penalty!r} is not for {self.activation}, where k bounds activity."
            )
        if self.penalty == "l0" and self.activation == "relu":
            raise ValueError("penalty='l0' has no gradient for a relu; use l1 or tanh.")

    def _check_numbers(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name}={value} must be finite.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be more than 0.")
        for name in ("weight_decay", "auxiliary", "skip_first"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 is none.")
        for name in ("warmup", "decay", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share; give 0 to 1.")
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup={self.warmup} and decay={self.decay} overlap; let them sum to at most 1."
            )
        if self.skip_first >= self.length:
            raise ValueError(
                f"skip_first={self.skip_first} leaves nothing of length={self.length} tokens."
            )

    @property
    def total(self) -> int:
        """How many steps the run takes."""
        return self.steps if self.steps is not None else -(-(self.tokens or 0) // self.batch)

    @property
    def penalised_by(self) -> str | None:
        """The penalty in force; None where k does the work."""
        if self.activation in ("topk", "batchtopk"):
            return None
        if self.penalty is not None or self.kind != "cross-layer":
            return self.penalty or {"relu": "l1", "jumprelu": "l0"}[self.activation]
        return "tanh"

    def rate(self, step: int, width: int) -> float:
        """The learning rate at a step: up in a line, level, down in a line.

        Weights are about 1 / sqrt(width) in size, and Adam changes each by the rate.
        """
        highest = self.learning_rate or 0.03 / width**0.5
        rise, fall = self.warmup * self.total, self.decay * self.total
        up = (step + 1) / rise if rise else 1.0
        down = (self.total - step) / fall if fall else 1.0
        return highest * min(1.0, up, down)

    def weight(self, step: int) -> float:
        """The penalty's weight at a step."""
        name = self.penalised_by
        if name is None:
            return 0.0
        full = self.sparsity if self.sparsity is not None else _SPARSITY[name]
        return full * min(1.0, (step + 1) / (self.ramp * self.total)) if self.ramp else full
