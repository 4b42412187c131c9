"""Speakers: language models that answer a question in words, elsewhere or here."""

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from replacement.host import Host

KEY = "CIRCUITS_EXPLAIN_KEY"  # the environment variable with a service's key
_LONGEST = 120  # tokens of an answer


@runtime_checkable
class Speaker(Protocol):
    """What can be asked."""

    def answer(self, question: str) -> str:
        """The answer to one question."""
        ...


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible service: `base` as in http://localhost:8000/v1, and one of its models.

    Its key, where it needs one, is read from the environment variable CIRCUITS_EXPLAIN_KEY.
    """

    base: str
    model: str
    timeout: float = 60.0  # seconds

    def answer(self, question: str) -> str:
        """Ask the service."""
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _LONGEST,
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        url = f"{self.base.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                said: Any = json.loads(reply.read())
            return str(said["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            told = f"; set {KEY} to its key" if error.code in (401, 403) else ""
            raise ValueError(f"{url} answered {error.code} {error.reason}{told}.") from error
        except OSError as error:  # unreachable, or too slow
            reason = getattr(error, "reason", error)
            raise ValueError(f"{url} does not answer: {reason}.") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{url} answered what is no chat completion; is it OpenAI-compatible?"
            ) from error


@dataclass(frozen=True, eq=False)
class Local:
    """A language model on this machine, which speaks greedily."""

    host: Host

    @classmethod
    def open(cls, name: str, device: str = "auto") -> "Local":
        """Open a model by its name or folder; one that has a chat template is spoken to with it."""
        host = Host.open(name, device=device)
        return cls(replace(host, chat=getattr(host.tokenizer, "chat_template", None) is not None))

    @torch.no_grad()
    def answer(self, question: str) -> str:
        """Ask the model."""
        host, cache, said = self.host, None, []
        ids = host._encode(question)
        if len(ids) + _LONGEST > host.context:
            raise ValueError(
                f"the question has {len(ids)} tokens and {host.name} reads at most {host.context}, "
                "its answer included; take a model with a longer context as the explainer."
            )
        tokens = torch.tensor([ids], device=host.device)
        while len(said) < _LONGEST:
            logits, cache = host.bridge(
                tokens, return_type="logits_and_cache", past_key_values=cache, use_cache=True
            )
            tokens = logits[:, -1:].argmax(-1)
            if int(tokens) == host.tokenizer.eos_token_id:
                break
            said.append(int(tokens))
        return host.text(said)
