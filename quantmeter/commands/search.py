"""``quantmeter search``: find the bits within budgets."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantization.errors import QuantmeterError
from quantmeter.commands.drift import add_old_tables, check_named_tables
from quantmeter.commands.options import (
    Subparsers,
    add_choices,
    add_command,
    add_costs,
    add_data,
    add_seed,
    add_store,
    add_threads,
    add_time,
    positive,
    print_json,
    progress_bar,
    store_of,
)
from quantmeter.commands.search_report import print_report
from quantmeter.commands.search_training import add_training, training_of
from quantmeter.files import write
from quantmeter.rewards import REWARDS

if TYPE_CHECKING:
    from quantmeter.workbench import Workbench


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "search", "find the bits within budgets", run)
    parser.add_argument("model", metavar="MODEL.onnx", nargs="?", help="float ONNX model")
    add_data(parser)
    parser.add_argument(
        "--task",
        metavar="MODULE:FUNCTION",
        help="instead of model and data: a function that returns a torch module and its images "
        "(quantization.task.Task)",
    )
    add_costs(parser)
    add_choices(parser)
    add_seed(parser)
    add_threads(parser)
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="such as latency=0.7x (of the float model), latency=8ms, latency=20Mcycles, size=2MB; "
        "repeat for several",
    )
    parser.add_argument(
        "--method",
        default="reinforce",
        help="reinforce (default), evolution, bayesian, neighbourhood, differentiable or random; "
        "of a few evaluations exact, greedy, manual or uniform; of none zero-shot",
    )
    parser.add_argument(
        "--reward",
        default="accuracy",
        choices=REWARDS,
        help="accuracy on the search part (default), the negative divergence from the float "
        "network there (kl; no labels needed), or the negative sum of sensitivities (proxy)",
    )
    add_training(parser)
    parser.add_argument(
        "--episodes", type=positive, default=600, help="policies to try (default 600)"
    )
    parser.add_argument(
        "--warm",
        nargs="?",
        const="greedy",
        metavar="exact",
        help="start from what greedy search finds on the proxy loss, or with exact, from its "
        "optimum",
    )
    parser.add_argument(
        "--sensitivity",
        metavar="NAME",
        help="what the proxy loss sums up over the layers: kl (default), cross-entropy, "
        "accuracy-drop, logit-mse, output-mse, fisher (default of zero-shot) or hessian",
    )
    parser.add_argument(
        "--race",
        nargs="?",
        type=positive,
        const=4,
        default=0,
        metavar="K",
        help="score on growing parts of the images, and abandon a policy once K better ones beat "
        "it (K: 4)",
    )
    parser.add_argument(
        "--refit",
        type=positive,
        default=0,
        metavar="N",
        help="score N of the episodes, 10 at least, near the optimum of the proxy first, whatever "
        "the method, and refit the proxy to them",
    )
    parser.add_argument(
        "--totals",
        metavar="BACKEND",
        help="prices each tried policy as a whole, such as ort, which builds and times it briefly; "
        "one above its budget is rejected (default: the sum of the table)",
    )
    parser.add_argument(
        "--constraint",
        default="repair",
        metavar="NAME",
        help="what becomes of policies beyond a budget: repair (default), reject, mask (the agent "
        "cannot choose them), soft (the agent pays for the excess), or weighted (repaired, and "
        "costs count by --weight)",
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="METRIC=WEIGHT",
        help="what a cost as large as its budget takes off the score, such as latency=0.1; repeat "
        "for several",
    )
    parser.add_argument(
        "--init-from",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of reinforce, of other networks or devices, whose agents this one continues",
    )
    parser.add_argument(
        "--agent",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a knob of reinforce's agent, such as learning_rate=0.002, rollouts=20 or "
        "weights_first=true (search/reinforce_config.py); repeat for several",
    )
    parser.add_argument(
        "--front",
        metavar="METRIC=COUNT",
        help="find the best policies within so many budgets too, such as latency=8",
    )
    parser.add_argument(
        "--channel-groups",
        action="store_true",
        help="split layers of what was found into two groups of output channels, each with weights "
        "of its own width, where that helps within the budgets; taken if it scores better",
    )
    parser.add_argument(
        "--tie",
        action="append",
        default=[],
        metavar="LAYER,LAYER",
        help="layers that must get equal bits, or residual: all layers whose outputs are added up; "
        "repeat for several groups",
    )
    parser.add_argument(
        "--ranges",
        default="minmax",
        choices=("minmax", "percentile", "mse", "best"),
        help="how activation ranges are chosen (default minmax), or what measures best for each "
        "tensor, layer and width, weights included; the policy file carries it",
    )
    parser.add_argument(
        "--no-export",
        action="store_true",
        help="the policy is for other hardware, which a table prices: allow what ONNX Runtime "
        "cannot run, such as w4a4, and price no size",
    )
    add_time(parser)
    add_store(parser)
    add_old_tables(parser)
    parser.add_argument(
        "--out",
        default="runs/search",
        metavar="RUN",
        help="folder (runs/search); the same command goes on with a search that was ended",
    )
    parser.add_argument(
        "--anew", action="store_true", help="discard an unfinished search in the folder"
    )


def run(arguments: argparse.Namespace) -> int:
    """Search, write the run, and print the best policy."""
    from costmodels.units import parse_duration
    from quantmeter.run_files import TASK_MODEL
    from quantmeter.search_options import Objective, Scoring
    from quantmeter.searching import search

    scoring = Scoring(
        arguments.reward,
        arguments.sensitivity,
        arguments.race,
        arguments.totals,
        arguments.refit,
        arguments.oracle,
    )  # says at once what does not go together
    objective = Objective(arguments.constraint, tuple(arguments.weight))
    training = training_of(arguments)
    training.check(scoring, exported=not arguments.no_export, with_task=arguments.task is not None)
    subject = _subject(arguments)
    tables = check_named_tables(arguments)
    with _telling_what_goes_on(arguments), progress_bar("searching") as progress:
        report = search(
            *subject,
            cost=arguments.cost,
            budgets=arguments.budget,
            method=arguments.method,
            episodes=arguments.episodes,
            warm=arguments.warm,
            scoring=scoring,
            objective=objective,
            training=training,
            init_from=arguments.init_from,
            agent=arguments.agent,
            front=arguments.front,
            channel_groups=arguments.channel_groups,
            choices=arguments.choices,
            ties=[[name.strip() for name in group.split(",")] for group in arguments.tie],
            ranges=arguments.ranges,
            threads=arguments.threads,
            seconds=parse_duration(arguments.time),
            seed=arguments.seed,
            store=store_of(arguments),
            remote=arguments.remote,
            exported=not arguments.no_export,
            tables=tables,
            out=arguments.out,
            anew=arguments.anew,
            progress=progress,
        )
    if arguments.task is not None:
        write(Path(arguments.out) / TASK_MODEL, arguments.model.model.SerializeToString())
    if arguments.json:
        print_json(report.summary)
        return 0
    print_report(report, arguments)
    return 0


@contextmanager
def _telling_what_goes_on(arguments: argparse.Namespace) -> Iterator[None]:
    """Say, when the block is interrupted, which command goes on, if any trial was made."""
    from quantmeter.run_folder import TRIALS

    try:
        yield
    except KeyboardInterrupt:
        trials = Path(arguments.out) / TRIALS
        if not (trials.is_file() and trials.stat().st_size):
            raise KeyboardInterrupt(" before anything was tried") from None
        anew = arguments.anew
        command = "the same command without --anew" if anew else "the same command"
        raise KeyboardInterrupt(f"; {command} goes on where it ended") from None


def _subject(arguments: argparse.Namespace) -> "tuple[str | Workbench, str | None]":
    """Return model and data, or the workbench of a task; then its network becomes the model.

    Raises:
        QuantmeterError: unless exactly one of both is given.
    """
    given = arguments.model is not None, arguments.data is not None
    if arguments.task is None:
        if not given[0]:
            raise QuantmeterError(
                "MODEL.onnx is missing: give it right behind `search`, or --task MODULE:FUNCTION "
                "instead of model and --data"
            )
        if not given[1]:
            raise QuantmeterError("images are missing: give --data DATA.npz")
        return arguments.model, arguments.data
    if any(given):
        raise QuantmeterError("--task brings model and images: leave out MODEL.onnx and --data")
    from quantmeter.tasks import load_task, open_task

    bench = open_task(load_task(arguments.task), seed=arguments.seed)
    arguments.model = bench.network
    return bench, None
