from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES
from quantization.policy import PolicyBatch
from quantization.reading import read_network
from quantmeter.certificate import (
    certificate_lines,
    dearest_table,
    front_table,
    pattern_table,
)
from quantmeter.reference_task import SHIPPED_MODEL
from search.certificate import certify
from search.exact import solve
from search.pareto import proxy_front, with_trials
from search.patterns import layer_groups, measure_patterns
from search.searcher import Trial
from search.slope import Slope
from tests.search.networks import problem, residual

LATENCY, SIZE = Metric.LATENCY, Metric.SIZE


def printed(what, width: int = 150) -> list[str]:
    out = Console(width=width, highlight=False)
    with out.capture() as capture:
        out.print(what)
    return capture.get().splitlines()


@pytest.fixture(scope="module")
def made():
    given = problem(residual(), 0, {LATENCY: 0.6, SIZE: 5.0})
    return certify(given, solve(given), step=0.1)


def test_the_lines_say_what_is_proved_and_what_a_step_is_worth(made):
    first, latency, worth, size, nothing, note = certificate_lines(made)
    assert first.endswith(f"equal to the proved optimum {made.optimum:.4g}")
    assert latency.startswith("latency budget ")
    assert "the minimum reachable is" in latency
    price = made.prices[0]
    assert f"(10%) saves {price.bought:.3g} of proxy loss; " in worth
    assert f"less adds {price.given_up:.3g}" in worth
    assert "points" not in worth
    assert size.startswith("size budget ")
    assert "more (10%) saves nothing;" in nothing
    assert nothing.endswith("less adds nothing")
    assert "solved again" in note
    worse = replace(made, loss=1.25 * made.optimum)
    assert "25.00% above the proved optimum" in certificate_lines(worse)[0]


def test_a_policy_with_channel_groups_is_told_beside_the_optimum_of_one_width_a_layer(made):
    better = replace(made, loss=0.9 * made.optimum, grouped=True)
    expected = f"by channel groups 10.00% below the proved optimum {made.optimum:.4g} of one width"
    assert expected in certificate_lines(better)[0]
    worse = replace(made, loss=1.25 * made.optimum, grouped=True)
    assert "25.00% above the proved optimum" in certificate_lines(worse)[0]
    unproven = certificate_lines(replace(better, proven=False, bound=0.8 * made.optimum))[0]
    assert unproven.endswith(
        f"no policy has less than {0.8 * made.optimum:.4g} with one width a layer"
    )


def test_of_channel_groups_the_dearest_layers_tell_how_many_channels_have_which_width(made):
    [layers] = [made.layers[LATENCY]]
    grouped = replace(layers[0], bits="w2a8[0-4,9]+w4a8[5-8]")
    text = "\n".join(printed(dearest_table(replace(made, layers={LATENCY: (grouped,)}), 150)))
    assert "6 w2a8 + 4 w4a8" in text


def test_points_are_told_only_with_a_slope_that_is_told(made):
    told = replace(made, slope=Slope(0.5, 0.25, 1.0, 40))
    bought = 100 * made.prices[0].bought
    _, _, worth, *_, note = certificate_lines(told)
    assert f"about {bought / 2:.2g} points [{bought / 4:.2g}, {bought:.2g}]" in worth
    assert "estimated with the slope measured on 40 trials" in note
    hidden = replace(made, slope=Slope(0.5, -0.1, 1.0, 40))
    _, _, worth, *_, note = certificate_lines(hidden)
    assert "points" not in worth
    assert note.startswith("(no points")


def test_an_optimum_that_is_not_proved_is_told_with_its_bound(made):
    unproven = replace(made, proven=False, bound=made.optimum / 2, loss=made.optimum)
    [first, *_] = certificate_lines(unproven)
    assert "proved" not in first
    assert f"no policy has less than {made.optimum / 2:.4g}" in first
    assert "at most 100.00% above" in first
    prices = tuple(replace(price, proven=False) for price in made.prices)
    assert "ran out of time" in certificate_lines(replace(made, prices=prices))[-1]


def test_a_step_less_that_cannot_be_met_is_told(made):
    prices = (replace(made.prices[0], tighter=None),)
    assert certificate_lines(replace(made, prices=prices))[2].endswith("less cannot be met")


def test_a_price_that_could_not_be_solved_is_told(made):
    lines = certificate_lines(replace(made, unsolved={Metric.ENERGY: "no policy was found"}))
    [told] = [line for line in lines if line.startswith("energy budget")]
    assert told.endswith("could not be solved: no policy was found")


def test_the_dearest_layers_are_listed_with_their_shares(made):
    lines = printed(dearest_table(made, 150, 2))
    for metric in (LATENCY, SIZE):
        for layer in made.layers[metric][:2]:
            [row] = [line for line in lines if line.split()[:1] == [layer.name]]
            assert f"{layer.cost / made.totals[metric]:.1%}" in row
            assert layer.bits in row
    assert len(lines) <= 5 + 4


def test_on_a_narrow_terminal_names_are_whole_and_then_cut_in_front(made):
    renamed = {
        metric: tuple(replace(layer, name=f"/features/features/{layer.name}") for layer in layers)
        for metric, layers in made.layers.items()
    }
    name = made.layers[LATENCY][0].name
    for width, own, begins in (
        (90, True, "/features/features"),
        (66, False, "/features/features"),
        (56, False, ".../features"),
    ):
        lines = printed(dearest_table(replace(made, layers=renamed), width), width)
        assert max(map(len, lines)) <= width
        assert any("itself" in line for line in lines) == own
        [row] = [line for line in lines if f"/{name} " in line]
        assert row.startswith(f" {begins}/{name} ")
        assert f"{made.layers[LATENCY][0].cost / made.totals[LATENCY]:.1%}" in row


def test_the_pattern_table_marks_patterns_only():
    network = read_network(SHIPPED_MODEL)
    depthwise = layer_groups(network)["depthwise"]
    index = np.where(depthwise, 4, 1)[None].astype(np.uint8)
    batch = PolicyBatch(network.layer_names, DEFAULT_CHOICES, index)
    lines = printed(pattern_table(measure_patterns(network, batch)), 80)
    assert max(map(len, lines)) <= 80
    [row] = [line for line in lines if line.strip().startswith("depthwise")]
    assert row.split() == ["depthwise", "6", "8.00", "+3.57", "<0.001*", "8.00", "+0.00"]
    assert sum("first" in line for line in lines) == 1
    [first] = [line for line in lines if line.strip().startswith("first")]
    assert "pattern" not in first


def test_the_front_has_a_row_for_each_budget():
    given = problem(residual(), 0, {LATENCY: 1.0})
    points = proxy_front(given, LATENCY, 5)
    last = points[-1].solution
    trial = Trial(last.index, 0.975, last.loss, last.costs, "test")
    unit = given.tables[LATENCY].unit
    bare = printed(front_table(points, LATENCY, unit))
    assert not any("trial" in line for line in bare)
    scored = with_trials(points, [trial], LATENCY, lambda index: np.full(len(index), 0.125))
    lines = printed(front_table(scored, LATENCY, unit))
    assert sum("0.125" in line for line in lines) == len(points)
    assert sum("none" in line for line in lines) == len(points) - 1
    assert sum("0.975" in line for line in lines) == 1
