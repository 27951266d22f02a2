"""The second verb: find the bits that keep the accuracy inside the budgets."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.table import CostTable
from quantization.bits import FLOAT32, BitWidths
from quantization.errors import BudgetError, DataError, QuantmeterError
from quantization.network import Network
from quantization.ranges import RANGE_METHODS, RangeMethod
from quantization.ties import resolve_ties
from quantmeter.agent_knobs import check_knobs, parse_knobs
from quantmeter.costs import measuring_device, parse_costs
from quantmeter.data import Data
from quantmeter.explaining import explain, front_files
from quantmeter.grouping import Grouping, check_groupable, group_channels, trained_from
from quantmeter.journal import Journal
from quantmeter.method_run import above_as_a_whole, configured, run_method, start_policy
from quantmeter.preparing import Progress, prepare
from quantmeter.refitting import refitted
from quantmeter.rewards import check_reward
from quantmeter.run_folder import (
    POLICY,
    Earlier,
    RunFolder,
    backend_identity,
    data_digest,
    file_digest,
    versions,
)
from quantmeter.runs import describe, simulated_on_test, summarize
from quantmeter.scoring import Scorer, open_totals
from quantmeter.search_options import (
    AGENT,
    PTQ,
    QAT,
    ZERO_SHOT,
    Objective,
    Scoring,
    check_start,
    parse_front,
    read_agents,
)
from quantmeter.search_outcome import SearchReport
from quantmeter.trained import Trained, drop_candidates, train_best
from quantmeter.training import Training, check_target, open_oracle
from quantmeter.trials import as_accuracies, open_journal, run_to_the_end
from quantmeter.workbench import Workbench, open_workbench
from search import methods
from search.budgets import parse_budgets
from search.exact import solve
from search.searcher import SearchResult

_LOGGER = logging.getLogger(__name__)


def search(
    model: str | Path | Network | Workbench,
    data: str | Path | Data | None = None,
    *,
    cost: Sequence[str] = (),
    budgets: Sequence[str] = (),
    method: str = "reinforce",
    episodes: int = 600,
    warm: str | None = None,
    scoring: Scoring | None = None,
    objective: Objective | None = None,
    training: Training | None = None,
    init_from: Sequence[str | Path] = (),
    agent: Sequence[str] = (),
    front: str | None = None,
    channel_groups: bool = False,
    choices: Sequence[BitWidths] | None = None,
    ties: Sequence[Sequence[str]] = (),
    ranges: RangeMethod | Literal["best"] = RANGE_METHODS[0],
    threads: int = 1,
    seconds: float = 60.0,
    seed: int = 0,
    store: Path | None = None,
    remote: str = "",
    exported: bool = True,
    tables: Mapping[str, CostTable] | None = None,
    out: str | Path | None = None,
    anew: bool = False,
    progress: Progress = lambda _share, _what: None,
) -> SearchReport:
    """Search for the bits of every layer of a network under budgets.

    A search into a folder can be ended at any time: the same call goes on with it, repeats no
    evaluation and ends with the same result.

    Args:
        model: path of an ONNX file, or a network; or a workbench, as of a torch task
            (`quantmeter.tasks.open_task`), which holds its data.
        data: images that the network never saw, split 20 / 40 / 40 into ranges, search and test.
        cost: backends, such as ``table:T.json`` or ``energy=analytical:haq``.
        budgets: such as ``latency=0.7x`` or ``size=2MB``.
        method: one of `search.methods.METHODS`.
        episodes: policies to try.
        warm: let an iterative method start from the solution of the proxy loss that ``greedy`` or
            ``exact`` search finds; None starts cold.
        scoring: how policies are scored; None for accuracy.
        objective: what budgets mean; None repairs what is beyond them.
        training: how the oracle ``qat`` trains, and how many of the best policies are fine-tuned;
            needs the workbench of a task. None has the defaults and fine-tunes none.
        init_from: folders of runs of REINFORCE whose agents it continues.
        agent: knobs of REINFORCE's agent, such as ``learning_rate=0.002`` or
            ``weights_first=true``; see `search.reinforce_config`.
        front: such as ``latency=8``: find the best policies within so many budgets too.
        channel_groups: split layers of the best policy into two groups of output channels, each at
            a width of its own, where that saves proxy loss within the budgets; the result if it
            scores better. See `quantmeter.grouping`.
        choices: bit-widths; None for those of what is priced (`Target.default_choices`).
        ties: groups of layers that must get equal bits, beside the network's own; ``("residual",)``
            stands for all that are added up (`quantization.ties`).
        ranges: how activation ranges are chosen; policies carry it as their option ``ranges``.
            ``best`` measures it, for weights too: see `Workbench.with_best_ranges`.
        threads: of a measuring backend.
        seconds: wall time of a measuring backend.
        seed: of split and search.
        store: file of the measurements that a measuring backend keeps; None keeps none.
            Sensitivities are kept beside it.
        remote: ``HOST:PORT/KEY`` of the board that ``tvm`` measures on; "" for this machine.
        exported: whether the policy is to be exported. If not, as for other hardware, choices that
            ONNX Runtime cannot run are allowed too, and nothing has a size.
        tables: to use for ``table:FILE`` instead of what the file holds, by the file as in `cost`.
        out: folder of the run (`quantmeter.run_folder`); None writes nothing.
        anew: discard an unfinished search in `out` instead of going on with it.
        progress: called with the share done and what is being done.

    Returns:
        The best policy with its figures and the certificate.

    Raises:
        QuantmeterError: what is wrong with the model, the data, a budget, a backend or the folder.
    """
    methods.make_searcher(method)  # says at once that there is no such method
    check_start(warm, method)
    scoring = (scoring or Scoring()).for_method(method)
    assert scoring.sensitivity is not None
    objective = objective or Objective()
    training = training or Training()
    objective.check(method)
    scoring.check(method, episodes, objective.constraint)
    with_task = isinstance(model, Workbench) and model.task is not None
    training.check(scoring, exported=exported, with_task=with_task)
    if out is not None and not str(out):
        raise QuantmeterError("--out is empty: name a folder")
    knobs = parse_knobs(agent)
    check_knobs(
        knobs,
        method,
        objective.constraint,
        started=warm is not None,
        inherited=bool(init_from),
    )
    inherited = read_agents(init_from, method, out)
    check_reward(scoring.reward)
    asked = None if front is None else parse_front(front)
    requests = parse_budgets(budgets)
    method_of_ranges = RANGE_METHODS[0] if ranges == "best" else ranges
    if isinstance(model, Workbench):
        if data is not None:
            raise DataError("a workbench holds its data: leave out data")
        bench = replace(model, ranges=method_of_ranges)
    else:
        bench = open_workbench(model, data, seed=seed, ranges=method_of_ranges)
    if bench.data is None:
        raise DataError("a search needs images: give --data DATA.npz")
    ties = resolve_ties(bench.network, ties)
    context = BackendContext(
        threads=threads,
        seconds=seconds,
        seed=seed,
        inputs=bench.range_inputs,
        store=store,
        progress=progress,
        remote=remote,
    )
    costs = parse_costs(cost, context, exported=exported, tables=tables)
    if not costs.models:
        raise BackendError("nothing is priced; name what prices the latency or energy: --cost")
    if trains := training.asked_by(scoring):
        check_target(bench, costs.target, trains)
    if asked is not None:
        costs.model(asked.metric)  # says at once that nothing prices it
    whole = None
    if scoring.totals is not None:
        whole = open_totals(scoring.totals, context, requests, bench.network)
    choices = costs.target.default_choices if choices is None else choices
    if not (requests or asked or objective.weights) and FLOAT32 in choices:
        _LOGGER.warning("no budget keeps layers from float32: give --budget latency=0.7x, say")
    measuring = [*costs.models.values(), *(() if whole is None else whole.models.values())]
    request = {  # what no run had before it was invented is None where it is not asked for
        "network": [bench.network.digest, bench.network.weights_digest],
        "data": data_digest(bench.data.x, bench.data.y),
        "parts": None if bench.task is None or bench.split is None else bench.split.sizes,
        "cost": [backend_identity(text, tables or {}) for text in cost],
        "budgets": sorted(map(str, requests)),
        "method": method,
        **asdict(scoring),
        "oracle": None if scoring.oracle == PTQ else scoring.oracle,
        "episodes": episodes,
        "warm": warm,
        "front": front,
        "channel_groups": channel_groups or None,
        **asdict(objective),
        "training": training.request(bench, scoring),
        "agent": dict(knobs) or None,
        "init_from": [file_digest(Path(run) / AGENT) for run in init_from],
        "choices": list(map(str, choices)),
        "ties": sorted(sorted(tie) for tie in ties),
        "ranges": ranges,
        "totals": None if scoring.totals is None else backend_identity(scoring.totals, {}),
        "threads": threads,
        "time": seconds,
        "seed": seed,
        "export": exported,
        "device": list(measuring_device(measuring).identity),
        "versions": versions(),
    }
    with ExitStack() as held:
        folder = None if out is None else held.enter_context(RunFolder(Path(out)))
        left: Earlier | None = None
        if folder is not None and not anew:
            left = folder.earlier(request, bench.network.layer_names, choices)
        if ranges == "best":
            bench = bench.with_best_ranges(choices, progress)
        if whole is not None and left is not None and left.limits is not None:
            whole = replace(whole, limits=left.limits)  # a float model timed anew moves them
        priced = costs if left is None else costs.replaying(left.tables)
        if channel_groups:
            check_groupable(priced, whole, bench.network, choices)
        prepared = prepare(
            bench,
            priced,
            requests,
            choices,
            ties=ties,
            sensitivity=scoring.sensitivity,
            told=method != ZERO_SHOT,
            kept=None if store is None else store.with_suffix(".sensitivities"),
            progress=progress,
        )
        optimum = solve(prepared.problem)
        known = {} if left is None else {kept.index.tobytes(): kept.score for kept in left.trials}
        oracle = open_oracle(bench, training, seed) if scoring.oracle == QAT else None
        scorer = Scorer(
            prepared, scoring.reward, whole, known, scoring.race, objective.by_metric, oracle
        )
        journal: Journal | None = None
        if folder is not None:
            if left is None:
                folder.begin(
                    request,
                    priced.tables_with_float(bench.network, choices),
                    {} if whole is None else whole.limits,
                )
            journal = held.enter_context(open_journal(folder, left, prepared, scorer))
        record = None if journal is None else journal.record
        first: SearchResult | None = None
        if scoring.refit:
            prepared, first = refitted(
                prepared,
                optimum,
                scorer,
                exact=lambda trial: not scorer.of(trial.index).abandoned,
                evaluations=scoring.refit,
                seed=seed,
                progress=progress,
                record=record,
            )
            optimum = solve(prepared.problem)
        result = run_method(
            prepared,
            method,
            scorer=scorer,
            episodes=episodes - scoring.refit,
            seed=seed,
            searcher=configured(
                method,
                start_policy(prepared.problem, warm, scorer, record),
                objective.constraint,
                inherited,
                None if folder is None else lambda made: made.write(Path(folder.path / AGENT)),
                knobs,
            ),
            first=first,
            record=record,
            progress=progress,
        )
        assert result.best is not None
        score = scorer.of(result.best)
        if score.value == -math.inf:  # zero-shot scores nothing by itself
            raise BudgetError(above_as_a_whole(method) + scorer.closest())
        found = describe(prepared, method, result.best, optimum, result.log, score)
        if folder is not None:  # what follows refines or explains it, and may fail
            folder.keep({POLICY: found.policy.to_json()})
        grouping: Grouping | None = None
        if channel_groups:
            grouping = group_channels(prepared, found, result.best, optimum, scorer, progress)
            found = grouping.best
        if oracle is None:
            found = replace(found, test_accuracy=simulated_on_test(prepared, found.policy))
        ended = run_to_the_end(result, scorer)
        explanation = explain(
            prepared,
            optimum,
            ended,
            as_accuracies(ended, scorer),
            front=asked,
            scorer=scorer,
            refined=None if grouping is None else grouping.taken,
        )
        trained: Trained | None = None
        if trains:
            trained = train_best(
                *trained_from(grouping, prepared, result, scorer),
                optimum,
                training,
                exported=exported,
                seed=seed,
                folder=folder,
                progress=progress,
            )
        summary = {
            **summarize(prepared, requests, result, found, optimum, scoring, whole, explanation),
            "trained": None if trained is None else trained.to_dict(),
            "channel_groups": None if grouping is None else grouping.to_dict(),
        }
        if folder is not None:
            folder.keep({POLICY: found.policy.to_json()})
            if explanation.front is not None:
                folder.keep(front_files(explanation.front))
            if trained is not None:
                folder.keep(trained.files())
            folder.finish(summary)
            if trained is not None:
                drop_candidates(folder, trained)
    read_back = len(known)
    return SearchReport(
        found.policy, found, result, optimum, explanation, summary, read_back, trained, grouping
    )
