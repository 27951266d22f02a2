"""One task under one budget: what a policy scores, and what each method finds, remembered."""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest.memory import Memory, code_digest
from benchmarks.contest.tasks import Objective, Task
from costmodels.table import BoolArray, FloatArray
from quantization.bits import FLOAT32
from quantization.policy import IndexArray, Policy
from search.methods import MethodSettings, make_searcher
from search.problem import Problem
from search.starting import accepted_start, greedy_start

ROOT = Path(__file__).resolve().parents[2]
SCORING = (ROOT / "quantization", ROOT / "search" / "oracle.py")
"""Code that decides an accuracy."""
TIMING = (ROOT / "quantization", ROOT / "costmodels", ROOT / "hil")
"""Code that decides what a policy costs as a whole."""
SEARCHING = (ROOT / "quantization", ROOT / "costmodels", ROOT / "hil", ROOT / "search")
"""Code that decides what a search finds."""
ZERO_SHOT = "fisher"
"""The proxy of zero-shot: gradients of the float network; no quantized network runs."""


@dataclass(frozen=True, eq=False)
class Contest:
    """One task under one budget.

    Args:
        task: network and images.
        objective: what is limited.
        problem: with its budget.
        memory: what is known.
        label: of objective and budget.
        share: the budget as a fraction of the float network, if it is one.
        reward: what searches maximise: ``kl``, the negative divergence from the float network, or
            ``accuracy``.
    """

    task: Task
    objective: Objective
    problem: Problem
    memory: Memory
    label: str
    share: float | None = None
    reward: str = "kl"

    def evaluate(self, index: IndexArray) -> FloatArray:
        """Return rewards (P,) on the search part; -inf above the budget as measured."""
        return np.array([self._reward(row) for row in index])

    def _reward(self, row: IndexArray) -> float:
        if self.whole_limit is not None and self._measured(self.policy(row)) > self.whole_limit:
            return -np.inf
        accuracy, divergence = self.searched(row)
        return accuracy if self.reward == "accuracy" else -divergence

    def searched(self, row: IndexArray) -> tuple[float, float]:
        """Return the accuracy of a policy, (L,), on the search part, and its divergence in nats."""
        oracle = self.task.oracles["search"]

        def find() -> list[float]:
            batch = self.task.batch(self.problem, row[None])
            return [float(oracle.accuracy(batch)[0]), float(oracle.divergence(batch)[0])]

        accuracy, divergence = self.memory.recall(
            f"search {self._identity} {self._text(row)}", find
        )
        return float(accuracy), float(divergence)

    def _measured(self, policy: Policy) -> float:
        code = code_digest(*TIMING)
        key = f"measured {self.task.identity} {code} {self.objective.cost} {policy.to_json()}"
        measure = partial(self.task.measured, self.objective, policy)
        return float(self.memory.recall(key, measure))

    @cached_property
    def whole_limit(self) -> float | None:
        """The most that a policy may cost as a whole; None where none is measured so.

        The same share of the float network as the budget, both measured.
        """
        if not self.objective.whole or self.share is None:
            return None
        return self.share * self._measured(Policy.uniform(self.task.bench.network, FLOAT32))

    def start(self) -> IndexArray | None:
        """Return what greedy search finds, (L,), within the budget as measured; None if nothing."""
        if self.whole_limit is None:
            return greedy_start(self.problem)
        return accepted_start(
            self.problem,
            greedy_start,
            lambda index: bool(self.evaluate(index[None])[0] > -np.inf),
            [self.objective.metric],
        )

    def search(self, method: str, seed: int, evaluations: int, start: IndexArray) -> dict[str, Any]:
        """Return the policy that a method finds, and how many it scored."""
        proxy = None
        if method == "zero-shot":
            proxy = self.task.loss(self.problem.choices, ZERO_SHOT)
        settings = MethodSettings(start=start, proxy=proxy)

        def run() -> dict[str, Any]:
            searcher = make_searcher(method, settings)
            found = searcher.search(self.problem, self.evaluate, evaluations=evaluations, seed=seed)
            best = None if found.best is None else found.best.tolist()
            return {"best": best, "evaluations": found.evaluations}

        what = f"{self.label} {self.reward} {start.tolist()} {self._problem_digest(proxy)}"
        key = f"run {method} {seed} {evaluations} {self._identity} {what} {code_digest(*SEARCHING)}"
        result: dict[str, Any] = self.memory.recall(key, run)
        return result

    def right(self, row: IndexArray) -> BoolArray:
        """Return which unseen images a policy, (L,), classifies right, (N,)."""
        key = f"unseen {self._identity} {self._text(row)}"

        def find() -> str:
            return np.packbits(self.task.right(self.problem, row)).tobytes().hex()

        bits = np.frombuffer(bytes.fromhex(self.memory.recall(key, find)), np.uint8)
        return np.unpackbits(bits)[: self.task.oracles["test"].count].astype(bool)

    def policy(self, row: IndexArray) -> Policy:
        """Return a policy, (L,), as such."""
        return self.task.batch(self.problem, row[None])[0]

    @property
    def _identity(self) -> str:
        """Everything but the policy that decides an accuracy."""
        return f"{self.task.identity} {code_digest(*SCORING)}"

    def _problem_digest(self, proxy: FloatArray | None) -> str:
        """Digest of what a search is given to solve."""
        problem = self.problem
        content = hashlib.sha256(",".join(map(str, problem.choices)).encode())
        content.update(problem.loss.tobytes())
        content.update(b"" if proxy is None else ZERO_SHOT.encode() + proxy.tobytes())
        for metric, table in problem.tables.items():
            # Who made a table, and when, decides nothing.
            prices = replace(table, source={}, measurements=()).to_json()
            content.update(_rounded(f"{prices} {problem.budgets.get(metric)}").encode())
        content.update(_rounded(f"{self.whole_limit}").encode())
        return content.hexdigest()[:16]

    def _text(self, row: IndexArray) -> str:
        return ",".join(str(self.problem.choices[choice]) for choice in row)


def _rounded(text: str) -> str:
    """Text whose numbers have six digits: a stored table is read back with others after these."""
    return re.sub(r"\d+\.\d+(?:e[+-]?\d+)?", lambda number: f"{float(number[0]):.6g}", text)
