"""``--agent``: knobs reach the agent, and what is no knob is told in one line."""

import numpy as np
import pytest

from quantization.errors import QuantmeterError
from quantmeter.agent_knobs import check_knobs, parse_knobs
from quantmeter.method_run import configured
from search.reinforce import Reinforce
from search.reinforce_config import ReinforceConfig


def test_knobs_change_their_fields_and_no_others() -> None:
    searcher = configured("reinforce", knobs=parse_knobs(["rollouts=20", "weights_first=true"]))
    assert isinstance(searcher, Reinforce)
    assert searcher.config == ReinforceConfig(rollouts=20, weights_first=True)


def test_knobs_go_with_a_start_and_with_what_becomes_of_budgets() -> None:
    start, knobs = np.zeros(3, np.uint8), parse_knobs(["entropy=0.5"])
    warm = ReinforceConfig.warm()
    for constraint in ("mask", "repair", "reject"):
        searcher = configured("reinforce", start, constraint, knobs=knobs)
        assert isinstance(searcher, Reinforce)
        assert searcher.config.entropy == 0.5
        assert searcher.config.learning_rate == warm.learning_rate
        assert searcher.config.constraint == constraint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rolouts=3", "rollouts"),
        ("rollouts", "write NAME=VALUE"),
        ("rollouts=2.5", "a whole number from 1 to 10000, not '2.5'"),
        ("rollouts=0", "from 1"),
        ("entropy=inf", "a number at least 0, not 'inf'"),
        ("learning_rate=nan", "a number from 1e-12 to 1, not 'nan'"),
        ("learning_rate=0", "a number from 1e-12"),
        ("weights_first=1", "true or false"),
        ("constraint=mask", "is no knob"),
    ],
)
def test_what_is_no_knob_is_told(text: str, said: str) -> None:
    with pytest.raises(QuantmeterError, match=said):
        parse_knobs([text])


def test_a_knob_is_given_once_to_a_method_that_has_it() -> None:
    with pytest.raises(QuantmeterError, match="two values for --agent hidden"):
        parse_knobs(["hidden=8", "hidden=9"])
    plain = {"started": False, "inherited": False}
    with pytest.raises(QuantmeterError, match="evolution has no agent"):
        check_knobs({"hidden": 8}, "evolution", "repair", **plain)
    with pytest.raises(QuantmeterError, match="leave out --agent hidden"):
        check_knobs({"hidden": 8}, "reinforce", "repair", started=False, inherited=True)
    check_knobs({"rollouts": 8}, "reinforce", "repair", started=False, inherited=True)


def test_a_knob_that_decides_nothing_is_refused() -> None:
    for knobs in ({"elites": 0, "elite_weight": 1.0}, {"elites": 3, "elite_weight": 0.0}):
        with pytest.raises(QuantmeterError, match="no elites, or none that weigh"):
            check_knobs(knobs, "reinforce", "repair", started=True, inherited=False)
    plain = {"started": False, "inherited": False}
    with pytest.raises(QuantmeterError, match="soft_rate needs --constraint soft"):
        check_knobs({"soft_rate": 1.0}, "reinforce", "repair", **plain)
    check_knobs({"soft_rate": 1.0}, "reinforce", "soft", **plain)
    with pytest.raises(QuantmeterError, match="imitation_steps needs --warm or --init-from"):
        check_knobs({"imitation_steps": 3}, "reinforce", "repair", **plain)
    for given in ("started", "inherited"):
        check_knobs({"imitation_steps": 3}, "reinforce", "repair", **{**plain, given: True})
