"""The mistakes of `mutations.py` in what keeps a run from being lost; as in mutation_table.py."""

from __future__ import annotations

RUNS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("checkpoint.py", "test_checkpoint.py"): [
        ("_set_damaged_aside(self._directory) if processes.is_first() else None", "None"),
        ("if processes.is_first():\n                seal(place)", "if False:\n                seal(place)"),
        ("        self.wait()\n        live, _ = split_frozen(state)\n", "        live, _ = split_frozen(state)\n"),
        ("if free < needed:", "if False:"),
        ("            check_arrays(place, target)\n", ""),
        ("reverse=True, n=1,", "reverse=False, n=1,"),
        ('return None if sha256(path) == expected["sha256"] else "changed"', "return None"),
        ('if manifest["sha256"] != _digest(listed):', "if False:"),
        ("key=lambda path: int(path.name), reverse=True", "key=lambda path: path.name, reverse=True"),
        ("while free.exists():", "while False:"),
    ],
    ("loops/run.py", "loops/test_faults.py"): [
        ("                rescue(checkpoints, writer, known, state, bar.say)\n", ""),
    ],
    ("loops/faults.py", "loops/test_faults.py"): [
        ("if row > self._allowed:", "if row > self._allowed + 1:"),
        ("for older in fault_folders(self._directory)[:-REPLAYABLE]:", "for older in ():"),
    ],
    ("loops/run.py", "loops/test_preemption.py"): [
        ("                if not kept:  # it came", "                if False:  # it came"),
    ],
    ("processes.py", "test_hosts.py"): [
        ("        setattr(error, ALIKE, True)\n        raise error\n    for other", "        pass\n    for other"),
        ('raise Elsewhere(f"process {other}: {words}")', "pass"),
    ],
    ("sharding.py", "test_hosts.py"): [
        ("first = int(np.searchsorted(own, start))", "first = 0"),
    ],
    ("loops/rlhf.py", "loops/test_shared_prompts.py"): [
        ("        together=config.together,\n", ""),
        ("logprobs=policy.logprobs", "logprobs=learner.logprobs"),
        ("return model.in_groups(config.together, config.new_tokens)", "return model"),
    ],
    ("data/batching/batches.py", "data/test_batches.py"): [
        ("if length >= longest), lengths[-1])", "if length > longest), lengths[-1])"),
        ("x[:, -length:], prompts)", "x[:, :length], prompts)"),
        ("found.setdefault(self._which[step][0], step)", "found[self._which[step][0]] = step"),
    ],
    ("rollout/replies.py", "rollout/test_replies.py"): [
        ("if ids and ids[-1] == tokenizer.eos", "if ids"),
        ("row_keys(key, 0, index, ", "row_keys(key, 0, np.arange(len(index)), "),
        ("last_columns(batch.prompts, columns if length is None else length)", "batch.prompts"),
    ],
    ("memory.py", "test_memory.py"): [
        ('if controllers and "memory" not in', 'if False and "memory" not in'),
        ("for place in (folder, *folder.parents)", "for place in (folder,)"),
        ("found[shard.data.unsafe_buffer_pointer()] = ", "found[id(shard.data)] = "),
    ],
    ("train/ppo.py", "loops/test_shared_prompts.py"): [
        ("state.policy.params, batch, microbatches, together)", "state.policy.params, batch, microbatches)"),
        ("value.params, batch, microbatches, together)", "value.params, batch, microbatches)"),
        ("orders[:, :, None] * together", "orders[:, :, None]"),
    ],
    ("loops/rlhf.py", "test_hosts.py"): [
        ("range(processes.number(), len(replies), processes.count())", "range(len(replies))"),
    ],
    ("loops/preemption.py", "test_hosts.py"): [
        ("self.given or multihost_utils.reached_preemption_sync_point(next(self._questions))", "self.given"),
    ],
    ("report/spikes.py", "report/test_spikes.py"): [
        ("if not math.isfinite(value):", "if False:"),
        ("abs(usual) / 10", "0.0"),
    ],
    ("compiled.py", "test_compiled.py"): [
        ("or len(self._seen) <= self._allowed:", "or True:"),
        ("self.trace(*shapes_in_device_memory(args))", "self.trace(*args)"),
        ("except (TypeError, ValueError):", "except TypeError:"),
        ("        if _one_by_one():  # another", "        if False:  # another"),
        ("            early.called = True\n            self._note(args)\n", "            early.called = True\n"),
    ],
    ("lanes/numbers.py", "lanes/test_numbers.py"): [
        (
            "jnp.where(self.lane == numbered[0], numbered[1], other)",
            "jnp.where(self.lane != numbered[0], numbered[1], other)",
        ),
        ("if len(said) > 1:", "if False:"),
        ("return function(theirs, mine) if turned", "return function(mine, theirs) if turned"),
    ],
    ("lanes/together.py", "lanes/test_together.py"): [
        ("max(held_on(self.device_of(0)) - self._before, found", "max(0, found"),
        ("held_on(self.device_of(0)) - self._before, found", "held_on(self.device_of(0)), found"),
        ("if not self._asked or len(self._asked) < len(self._running) or", "if not self._asked or"),
        ("first = min(request.number", "first = max(request.number"),
        ("self._running.discard(lane)", "pass"),
        ("made = [program.made.get(lane, known)", "made = [known"),
        ("if needed > self.memory and", "if False and"),
        ("may_alias=not program.step", "may_alias=True"),
        ("x.addressable_shards[lane % places].data", "x.addressable_shards[0].data"),
        ("jnp.arange(turns) * places + place", "jnp.arange(turns) + place"),
        ("if kind.weak_type:", "if False:"),
    ],
}
