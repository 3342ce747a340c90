"""A language model behind an address: any server that speaks OpenAI's chat protocol, such as `transformers serve` of an exported policy."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

KEY = "OPENAI_API_KEY"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """`endpoint(prompts)` are replies to them, in order, None where the server gave none after `retries`; several are asked for at once.

    Source: the chat completions of OpenAI (platform.openai.com/docs/api-reference/chat). Of its options only these are sent, since servers
    ignore those they do not know without a word.
    """

    url: str  # such as http://127.0.0.1:8000/v1
    model: str
    temperature: float = 1.0
    max_tokens: int = 512
    timeout: float = 120.0  # seconds for one reply
    retries: int = 2
    parallel: int = 4  # requests at once

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """Raises: ValueError where the package `openai` is missing, or the server refuses the first request for good."""
        client = self._client()
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda prompt: self._ask(client, prompt), prompts))

    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ValueError("asking an endpoint needs the package openai; pip install 'rlhf_jax[judge]'") from error
        # Servers of one's own ask for no key, but the client does.
        key = os.environ.get(KEY) or "none"
        return OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)

    def _ask(self, client: Any, prompt: str) -> str | None:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        message = {"role": "user", "content": prompt}
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        try:
            answer = client.chat.completions.create(model=self.model, messages=[message], **settings)
        except APITimeoutError:
            return None
        except APIConnectionError as error:
            raise ValueError(f"no server answers at {self.url}: {error.__cause__ or error}") from error
        except APIStatusError as error:
            if error.status_code in (429, 500, 502, 503, 504):  # it was asked again already
                return None
            said = f"{self.url} refused the request for {self.model!r} ({error.status_code}): {error.message}"
            raise ValueError(said) from error
        choices = getattr(answer, "choices", None) or []
        return choices[0].message.content if choices else None
