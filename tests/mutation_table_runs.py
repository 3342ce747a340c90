"""The mistakes of `mutations.py` in what keeps a run from being lost; as in mutation_table.py."""

from __future__ import annotations

RUNS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("checkpoint.py", "test_checkpoint.py"): [
        ("_set_damaged_aside(self._directory) if processes.is_first() else None", "None"),
        ("            seal(place)\n", ""),
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
    ("report/spikes.py", "report/test_spikes.py"): [
        ("if not math.isfinite(value):", "if False:"),
        ("abs(usual) / 10", "0.0"),
    ],
    ("compiled.py", "test_compiled.py"): [
        ("or len(self._kinds) <= self._programs:", "or True:"),
    ],
}
