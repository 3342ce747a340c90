"""Models by their hub id: found where they were fetched before, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import lively
from checkpoints import LLAMA, assert_same, saved

from rlhf_jax.models.convert.load import find_folder, load_pretrained


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, as huggingface_hub lays one out; there is no network."""
    from huggingface_hub import constants

    cache = tmp_path / "home" / "hub"
    cache.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert constants.HF_HUB_OFFLINE
    return cache


def cached(hub: Path, commit: str, branch: str) -> Path:
    """A model that was fetched before."""
    model = hub / "models--some--model"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / branch).write_text(commit)
    return saved(model / "snapshots" / commit)


@pytest.mark.parametrize("source", ["some/model", "hf:some/model", "some/model@main", "some/model@v2"])
def test_a_hub_id_that_was_fetched_before_is_found(hub, source):
    main, other = cached(hub, "0" * 40, "main"), cached(hub, "1" * 40, "v2")
    found = load_pretrained(source)
    assert found.folder == (other if source.endswith("v2") else main)
    assert_same(found.params, lively(LLAMA))


@pytest.mark.parametrize("source", ["some/model", "hf:some/model", "some/other", "some/model@v3"])
def test_a_hub_id_that_is_not_there_says_how_to_fetch_it(hub, source):
    if source.endswith("v3"):
        cached(hub, "0" * 40, "main")
    name = source.removeprefix("hf:").partition("@")[0]
    how = f"{name} --revision v3" if source.endswith("v3") else name
    with pytest.raises(
        FileNotFoundError, match=f"{source} is no folder here, .* fetch it once with `hf download {how}`"
    ):
        load_pretrained(source)


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "some/mo del", Path("some/model"), "-x/y--z", "hf:"])
def test_what_is_neither_folder_nor_hub_id_says_so(hub, source):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        find_folder(source)


def test_a_folder_goes_before_a_hub_id(hub, tmp_path, monkeypatch):
    cached(hub, "0" * 40, "main")
    saved(tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    assert find_folder("some/model") == Path("some/model")
