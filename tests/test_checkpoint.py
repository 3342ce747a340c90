"""A damaged checkpoint is named and moved aside, and the newest intact one is used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf_jax import checkpoint as module
from rlhf_jax.checkpoint import MANIFEST, Checkpoints, faults, load_part, newest_intact, seal

# Every kind of file that orbax writes, and the manifest.
KINDS = (
    MANIFEST,
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "state/_METADATA",
    "state/_sharding",
    "state/array_metadatas/*",
    "state/commit_success.txt",
    "state/d/*",
    "state/manifest.ocdbt",
    "state/ocdbt.process_0/d/*",
    "state/ocdbt.process_0/manifest.ocdbt",
)


def state_of(step: int) -> dict:
    """A state that says which step it is of."""
    return {"step": jnp.int32(step), "policy": {"params": {"w": jnp.full((3, 4), float(step))}, "rest": None}}


def saved(directory: Path, *steps: int, keep: int = 2) -> Path:
    """The directory, with the states of these steps saved one after another."""
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step))
    return directory


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one(checkpoint: Path, pattern: str) -> Path:
    """The first file of a checkpoint that matches."""
    return sorted(checkpoint.glob(pattern))[0]


def flip(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def reopened(directory: Path, match: str) -> int | None:
    """The latest step after opening, which warns."""
    with pytest.warns(UserWarning, match=match), Checkpoints(directory) as checkpoints:
        latest = checkpoints.latest
        if latest is not None:
            restored = checkpoints.restore(latest, state_of(0))
            jax.tree.map(np.testing.assert_array_equal, restored, state_of(latest))
    return latest


def test_the_kinds_are_all_the_files_that_there_are(tmp_path):
    checkpoint = saved(tmp_path / "sft", 1) / "1"
    listed = {str(path) for kind in KINDS for path in checkpoint.glob(kind)}
    assert listed == {str(checkpoint / name) for name in contents(checkpoint)}


def test_the_manifest_has_the_digest_and_size_of_every_file(tmp_path):
    checkpoint = saved(tmp_path / "sft", 1) / "1"
    listed = json.loads((checkpoint / MANIFEST).read_text())["files"]
    files = contents(checkpoint)
    assert listed.keys() == files.keys() - {MANIFEST}
    for name, content in files.items():
        if name != MANIFEST:
            assert listed[name] == {"bytes": len(content), "sha256": module.hashlib.sha256(content).hexdigest()}


def test_intact_checkpoints_open_without_a_word_and_two_are_kept_with_their_manifests(tmp_path):
    directory = saved(tmp_path / "sft", 1, 2, 3)
    with warnings.catch_warnings(), Checkpoints(directory) as checkpoints:
        warnings.simplefilter("error")
        assert checkpoints.latest == 3
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(3, state_of(0)), state_of(3))
    assert {path.name for path in directory.iterdir()} == {"2", "3"}
    assert {path.name for path in tmp_path.iterdir()} == {"sft"}
    assert [str(path.parent.name) for path in sorted(directory.rglob(MANIFEST))] == ["2", "3"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("damage", "word"), [(flip, "changed"), (cut, "cut short"), (Path.unlink, "missing")])
def test_a_damaged_file_of_any_kind_is_named_and_its_checkpoint_moved_aside_whole(tmp_path, kind, damage, word):
    directory = saved(tmp_path / "sft", 4, 8)
    file = one(directory / "8", kind)
    damage(file)
    before = contents(directory / "8")
    name = file.relative_to(directory / "8").as_posix()
    word = "changed" if kind == MANIFEST and damage is cut else word
    match = rf"sft/8 is not intact: {name} {word}[^;]*\. It was moved to .*sft\.damaged/8\.\nsft goes on from .*sft/4\."
    assert reopened(directory, match) == 4
    assert contents(tmp_path / "sft.damaged" / "8") == before
    assert {path.name for path in directory.iterdir()} == {"4"}


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(tmp_path):
    manifest = saved(tmp_path / "sft", 1) / "1" / MANIFEST
    content = manifest.read_bytes()
    for place in range(len(content)):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert faults(manifest.parent) == [f"{MANIFEST} changed"], place
    manifest.write_bytes(content)
    assert faults(manifest.parent) == []


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '{"files": {}}', '{"sha256": "", "files": []}'])
def test_what_is_no_manifest_is_a_damaged_one(tmp_path, content):
    manifest = saved(tmp_path / "sft", 1) / "1" / MANIFEST
    manifest.write_text(content)
    assert faults(manifest.parent) == [f"{MANIFEST} changed"]


def test_a_save_that_was_killed_before_its_manifest_is_not_used(tmp_path, monkeypatch):
    directory = saved(tmp_path / "sft", 1, 2)

    def killed(checkpoint: Path) -> None:
        assert (checkpoint / "_CHECKPOINT_METADATA").is_file(), "orbax has finished"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "seal", killed)
        saved(directory, 3)
    assert reopened(directory, f"sft/3 is not intact: {MANIFEST} missing: the save goes on, was cut off") == 2


def test_all_damaged_means_from_the_beginning_and_says_so(tmp_path):
    directory = saved(tmp_path / "sft", 1, 2)
    for step in ("1", "2"):
        flip(one(directory / step, "state/d/*"))
    match = (
        r"sft/2 is not intact(.|\n)*sft/1 is not intact(.|\n)*sft starts from its beginning: no checkpoint is intact\."
    )
    assert reopened(directory, match) is None
    assert {path.name for path in (tmp_path / "sft.damaged").iterdir()} == {"1", "2"}
    saved(directory, 1)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest == 1


def test_two_damaged_in_a_row_leave_the_third(tmp_path):
    directory = saved(tmp_path / "sft", 1, 2, 3, keep=3)
    flip(one(directory / "2", "state/d/*"))
    (directory / "3" / "commit_success.txt").unlink()
    assert reopened(directory, r"sft/3 is not intact(.|\n)*sft/2 is not intact(.|\n)*goes on from .*sft/1\.") == 1


def test_an_older_damaged_one_is_left_where_it_is_until_it_is_needed(tmp_path):
    directory = saved(tmp_path / "sft", 1, 2)
    flip(one(directory / "1", "state/d/*"))
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest == 2
    assert (directory / "1").is_dir()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_only_called_like_a_step_does_not_push_out_good_ones(tmp_path, make):
    directory = saved(tmp_path / "sft", 1, 2)
    make(directory / "9")
    assert reopened(directory, rf"sft/9 is not intact: {MANIFEST} missing") == 2
    saved(directory, 3)
    assert {path.name for path in directory.iterdir()} == {"2", "3"}


def test_what_was_moved_aside_before_is_never_overwritten(tmp_path):
    directory = tmp_path / "sft"
    for content in (b"first", b"second", b"third"):
        saved(directory, 5)
        one(directory / "5", "state/d/*").write_bytes(content)
        assert reopened(directory, "sft/5 is not intact") is None
    kept = [one(tmp_path / "sft.damaged" / name, "state/d/*").read_bytes() for name in ("5", "5-2", "5-3")]
    assert kept == [b"first", b"second", b"third"]


def test_files_that_came_later_do_not_matter(tmp_path):
    directory = saved(tmp_path / "sft", 1)
    (directory / "1" / ".DS_Store").touch()
    (directory / "1" / "state" / "d" / "notes").write_text("mine")
    with Checkpoints(directory) as checkpoints:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, state_of(0)), state_of(1))


@pytest.mark.parametrize("blind", ["stat", "open"])
def test_a_file_that_the_disk_does_not_give_back_is_damage_but_a_forbidden_one_may_be_intact(
    tmp_path, monkeypatch, blind
):
    directory = saved(tmp_path / "sft", 1)
    name = one(directory / "1", "state/d/*").name

    def failing(number: int) -> Callable:
        right = getattr(Path, blind)

        def read(path: Path, *rest, **how):
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return right(path, *rest, **how)

        return read

    with monkeypatch.context() as patched:
        patched.setattr(Path, blind, failing(errno.EIO))
        assert faults(directory / "1") == [f"state/d/{name} unreadable (Input/output error)"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, blind, failing(errno.EACCES))
        with pytest.raises(PermissionError, match=name):
            Checkpoints(directory)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest == 1


def test_a_warning_names_the_first_faults_and_counts_the_rest(tmp_path):
    directory = saved(tmp_path / "sft", 1)
    for path in (directory / "1").rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            path.unlink()
    assert reopened(directory, r"_CHECKPOINT_METADATA missing; (.*missing; ){3}\d+ more\. It was") is None


def test_an_intact_checkpoint_that_does_not_fit_raises_and_stays(tmp_path):
    directory = saved(tmp_path / "sft", 1)
    with Checkpoints(directory) as checkpoints, pytest.raises(ValueError, match=r"sft/1: cannot restore"):
        checkpoints.restore(1, {"other": jnp.zeros(2)})
    assert (directory / "1").is_dir() and not (tmp_path / "sft.damaged").exists()


def test_looking_for_the_newest_intact_one_changes_nothing(tmp_path):
    assert newest_intact(tmp_path / "nothing") == (None, {})
    directory = saved(tmp_path / "sft", 9, 10)
    assert newest_intact(directory) == (directory / "10", {})
    flip(one(directory / "10", "state/d/*"))
    before = contents(tmp_path)
    newest, damaged = newest_intact(directory)
    assert newest == directory / "9"
    assert list(damaged) == [directory / "10"]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("relative", [False, True])
def test_a_part_of_a_state_is_read_alone_and_one_that_is_not_there_is_named(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    directory = saved(Path("sft") if relative else tmp_path / "sft", 7)
    part = load_part(directory / "7", "policy", "params")
    assert jax.tree.map(type, part) == {"w": np.ndarray}
    np.testing.assert_array_equal(part["w"], state_of(7)["policy"]["params"]["w"])
    with pytest.raises(ValueError, match=r"sft/7: the state that was saved has no 'policy\.ema'"):
        load_part(directory / "7", "policy", "ema", "deeper")


def test_a_checkpoint_that_goes_while_it_is_sealed_does_not_come_back_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="does another process use this run"):
        seal(tmp_path / "sft" / "4")
    assert not (tmp_path / "sft").exists()
    empty = tmp_path / "sft" / "4" / MANIFEST
    empty.parent.mkdir(parents=True)
    listed: dict = {}
    digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    empty.write_text(json.dumps({"sha256": digest, "files": listed}))
    assert faults(empty.parent) == [f"{MANIFEST} lists no file"]


def test_a_save_goes_on_beside_training_and_has_the_state_of_its_step(tmp_path):
    change = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = change({"w": jnp.zeros((512, 1024))})
    with Checkpoints(tmp_path / "sft", keep=5) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state)
            for _ in range(10):
                state = change(state)
        for step in range(5):
            found = checkpoints.restore(step, {"w": jnp.zeros((512, 1024))})
            np.testing.assert_array_equal(found["w"], 1.0 + 10 * step)


def test_the_checkpoint_of_the_lowest_held_out_loss_is_kept_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path / "sft") as checkpoints:
        assert checkpoints.best is None
        for step, loss in enumerate([3.0, 1.0, 2.0, None, 1.5, None]):
            checkpoints.save(step, state_of(step), held_out=loss)
        assert (checkpoints.best, checkpoints.latest) == ((1, 1.0), 5)
    assert {path.name for path in (tmp_path / "sft").iterdir()} == {"1", "4", "5"}
    with Checkpoints(tmp_path / "sft") as checkpoints:
        assert checkpoints.best == (1, 1.0)
        checkpoints.save(6, state_of(6), held_out=0.5)
        assert checkpoints.best == (6, 0.5)
    assert {path.name for path in (tmp_path / "sft").iterdir()} == {"5", "6"}


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_loss_of_an_older_checkpoint_is_set_aside_and_the_others_are_read(tmp_path, damage):
    directory = tmp_path / "sft"
    with Checkpoints(directory) as checkpoints:
        for step, loss in ((1, 0.5), (2, 1.0), (3, 2.0)):
            checkpoints.save(step, state_of(step), held_out=loss)
    damage(one(directory / "1", "metrics/*"))
    assert reopened(directory, r"sft/1 is not intact: metrics/(.|\n)*sft goes on from .*sft/3\.") == 3
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.best == (2, 1.0)


@pytest.mark.parametrize("like", [jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 3)), jnp.ones((3, 4), jnp.int32)])
def test_an_array_of_another_type_or_shape_is_refused_by_name_and_never_converted(tmp_path, like):
    directory = saved(tmp_path / "sft", 1)
    other = {**state_of(0), "policy": {"params": {"w": like}, "rest": None}}
    said = rf"sft/1: cannot restore.*policy/params/w was saved as float32\[3, 4\], and this run has {like.dtype}"
    with Checkpoints(directory) as checkpoints, pytest.raises(ValueError, match=said):
        checkpoints.restore(1, other)


def test_a_state_restores_onto_another_mesh_with_the_same_numbers(tmp_path):
    def laid(*axes: int) -> jax.Array:
        mesh = jax.make_mesh(axes, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(axes)])
        return jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, PartitionSpec("a", "b")))

    with Checkpoints(tmp_path / "sft") as checkpoints:
        checkpoints.save(1, {"w": laid(4, 2)})
        for mesh in ((2, 4), (1, 1), (8, 1)):
            found = checkpoints.restore(1, {"w": laid(*mesh)})["w"]
            np.testing.assert_array_equal(found, laid(4, 2))
            assert found.sharding == laid(*mesh).sharding


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    directory = saved(tmp_path / "sft", 1, 2)
    before = contents(directory)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 40, 40))
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(
            OSError, match=r"a checkpoint takes 0\.00 GiB, and 0\.00 GiB are free; make room.*/sft"
        ) as raised:
            checkpoints.save(3, state_of(3))
        assert raised.value.errno == errno.ENOSPC
        assert checkpoints.latest == 2
    assert contents(directory) == before


def test_a_save_that_fails_in_the_background_is_told_by_the_next_call_and_leaves_the_one_before(tmp_path, monkeypatch):
    directory = saved(tmp_path / "sft", 1)

    def full(checkpoint: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "seal", full)
        with (
            pytest.raises(OSError, match=r"sft/2: this checkpoint could not be written: .*No space left"),
            Checkpoints(directory) as checkpoints,
        ):
            checkpoints.save(2, state_of(2))
    assert reopened(directory, "sft/2 is not intact") == 1


def test_a_checkpoint_linked_elsewhere_stays_when_it_is_given_up_here(tmp_path):
    with Checkpoints(tmp_path / "sft") as checkpoints:
        assert checkpoints.link(5, tmp_path / "none") is None
        for step in (2, 4):
            checkpoints.save(step, state_of(step))
        assert checkpoints.link(3, tmp_path / "kept") == 2
        for step in (6, 8):
            checkpoints.save(step, state_of(step))
    assert {path.name for path in (tmp_path / "sft").iterdir()} == {"6", "8"}
    assert faults(tmp_path / "kept" / "2") == []
