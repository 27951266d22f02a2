"""What a search returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantization.policy import Policy
from quantmeter.explaining import Explanation
from quantmeter.grouping import Grouping
from quantmeter.runs import Found
from quantmeter.trained import Trained
from search.exact import Solution
from search.searcher import SearchResult


@dataclass(frozen=True, eq=False)
class SearchReport:
    """What `search` returns and writes.

    Args:
        policy: the best policy.
        found: it in figures.
        result: every trial.
        optimum: the exact optimum of the proxy loss, the certificate.
        explanation: what is known beside the best policy.
        summary: what ``result.json`` holds.
        read_back: how many of the trials were made by an earlier run that had been ended.
        trained: what training made of the best policies, if any were trained.
        grouping: what channel groups made of the best policy, if they were asked for.
    """

    policy: Policy
    found: Found
    result: SearchResult
    optimum: Solution
    explanation: Explanation
    summary: Mapping[str, Any]
    read_back: int = 0
    trained: Trained | None = None
    grouping: Grouping | None = None
