from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
from datetime import datetime, timedelta

from rlhf_jax.report.environment import environment, git_state


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_environment_is_json_and_says_what_ran_where():
    state = json.loads(json.dumps(environment()))
    assert state["packages"]["jax"] == importlib.metadata.version("jax")
    assert state["jax"] == {"backend": "cpu", "processes": 1, "devices": {"cpu": 8}}
    assert state["variables"]["JAX_PLATFORMS"] == "cpu"
    assert datetime.fromisoformat(state["time"]).utcoffset() == timedelta(0)
    assert state["cpus"] >= 1
    assert shlex.split(state["command"]) == sys.orig_argv


def test_commit_and_changes_are_told_apart_from_files_git_does_not_track(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "module.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("untracked")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "module.py").write_text("x = 2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_a_package_installed_inside_another_repository_is_not_part_of_it(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "README").write_text("theirs")
    git(tmp_path, "add", "README")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    installed = tmp_path / ".venv" / "rlhf_jax"
    installed.mkdir(parents=True)
    (installed / "types.py").touch()
    assert git_state(installed) is None


def test_no_repository_no_commit_and_no_git_are_all_none(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "module.py").touch()
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
