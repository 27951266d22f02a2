"""Every benchmark runs in its quick mode; figures are for people, so none is asserted here."""

import re

import pytest

from benchmarks.episodes import alternate, random_problem, residual_chain
from tests.scripts import run_script


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("cascade.py", r"chosen: point \d[^$]*mean predicted [\d.]+ .?s, measured whole [\d.]+"),
        (
            "channel_groups.py",
            r"layer by layer, proven +[\d,]+ +0 [^$]*in groups, loss -\d+% .*"
            r"[+-][\d.]+ \[[+-][\d.]+ [+-][\d.]+\]",
        ),
        ("certificate.py", r"least loss +repaired +[\d.]+ %[^$]*what learning adds: .* [\d.]+ %"),
        ("episodes.py", r"update +[\d.]+ ms"),
        ("exporter_choices.py", r"the same file again +[\d.]+ \[[\d.]+ [\d.]+\] +same dB"),
        (
            "fastest.py",
            r"over the better uniform policy \((float|integer)\): at most [\d.]+\n"
            r"noise floor: +[\d.]+%",
        ),
        ("gpu.py", r"no run of a GPU was recorded: no such device|half / float +[\d.]+"),
        ("noise.py", r"5 A/A comparisons[^$]*limit +\d[^$]*half width of interval +median [\d.]+%"),
        ("policy_error.py", r"total +error +[\d.]+%[^$]*MACs x bits +error[^$]*size +error"),
        (
            "proxies.py",
            r"kl +random +-?[\d.]+ / +-?[\d.]+[^$]*output-mse +both 12: [-\d.]+ > [-\d.]+ "
            r"\([^$]*best 8: \d+% of the images",
        ),
        (
            "qat.py",
            r"mean bits of a weight: [23]\.\d\d\n[^$]*corrected +torch +[\d.]+% +file[^$]*"
            r"phase 1, 1.0 epochs +torch[^$]*phase 2, 1.0 epochs +torch +[\d.]+%",
        ),
        ("query.py", r"2,000 policies of 53 layers[^$]*total / bare = [\d.]+"),
        ("rewards.py", r"digits: 8 policies[^$]*better half[^$]*kl +-?[\d.]+ +-?[\d.]+"),
        ("rivals.py", r"digits: 21 layers[^$]*size w2.5a8[^$]*reinforce +5 [^$]*zero-shot +0 "),
        ("search_speed.py", r"search +[\d.]+ s for 10 evaluations[^$]*\d+ episodes a minute"),
        ("throughput.py", r"rate +\d+ policies a minute[^$]*inference +[\d.]+%"),
        ("train_digits.py", r"[\d.]+ ?%"),
        ("transfer.py", r"from one run +median[^$]*ratio [^$]*from 2 runs +median[^$]*ratio "),
        ("tvm_kernels.py", r"avx|portable[^$]*dw 32 7 +[\d.]+ [^$]*1 row 96-64 +[\d.]+ "),
        (
            "tvm_network.py",
            r"uniform: outputs equal [^$]*searched: outputs equal [^$]*tvm searched +[\d.]+ ms[^$]*"
            r"compiled from cold in [\d.]+ s",
        ),
        ("unseen_networks.py", r"calibrated +error +[\d.]+%[^$]*MACs x bits +error +[\d.]+%"),
    ],
)
def test_the_benchmark_runs_in_quick_mode_and_prints_its_figures(
    script: str, expected: str
) -> None:
    printed = run_script(f"benchmarks/{script}", "--quick")
    assert re.search(expected, printed), printed


def test_an_update_is_timed_once_though_its_policies_are_scored_one_by_one() -> None:
    seconds = alternate(random_problem(residual_chain(2)), 3)
    assert {name: len(values) for name, values in seconds.items()} == {
        "update": 3,
        "torch.nn.LSTM steps": 4,
        "the agent's own steps": 4,
    }
