"""How often equals seem to differ, and how small a difference a second of timing can tell.

    python benchmarks/noise.py                      # 200 comparisons of the reference network
    python benchmarks/noise.py --model MODEL.onnx   # of another float model
    python benchmarks/noise.py --log FILE           # goes on where a run with the same FILE ended
    python benchmarks/noise.py --one-session        # the control: see below
    python benchmarks/noise.py --quick              # a few short ones, for the test

Each comparison loads the model twice and compares the two sessions by `hil.compare`, whose default
looks take about a second for a run of a millisecond. New sessions for each comparison are part of
the question: two sessions of one model differ by where their memory came to lie, and so would those
of two models. With one pair for all comparisons a lasting difference would be found either always
or never.

Two shares are printed. *Differ* is the verdict, whose interval has to clear a floor for what
sessions of one model may differ by. *Exclude 1* takes no floor: sessions that really differ count
in it, so it may exceed 5 % without any interval being wrong. The verdict's decides the exit status.
With --one-session each comparison times one session against itself: nothing differs, the share that
exclude 1 is the error of the procedure alone, and it is this share that decides.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from hil.compare import CompareOptions, Verdict, compare
from hil.conditions import Conditions, advice
from hil.ort import Runner, one_feed, random_inputs
from hil.timing import TurnOptions
from quantization.reading import read_network
from quantmeter.reference_task import SHIPPED_MODEL

SHARE = 0.05
CONFIDENCE = 0.95


def limit(comparisons: int) -> int:
    """Return how many of the comparisons may differ if 5 in a hundred do: 95th percentile."""
    return int(binom.ppf(CONFIDENCE, comparisons, SHARE))


def compared(
    model: Path, seeds: range, options: CompareOptions, one_session: bool
) -> Iterator[dict[str, Any]]:
    """Compare two fresh sessions of `model` for each seed, or one with itself."""
    network = read_network(model)
    feed, content = one_feed(network, random_inputs(network, 1)), model.read_bytes()
    for seed in seeds:
        reference = Runner(content, 1, feed)
        candidate = reference if one_session else Runner(content, 1, feed)
        started = time.perf_counter()
        found = compare(candidate, reference, replace(options, seed=seed))
        yield {
            "model": network.digest,
            "sessions": 1 if one_session else 2,
            "seed": seed,
            "seconds": time.perf_counter() - started,
            "verdict": found.verdict.value,
            "ratio": found.ratio.to_dict(),
            "furthest": found.ratio.furthest,
            "detectable": found.detectable,
            "blocks": found.blocks,
            "median_s": found.reference.median_s,
            "reached_cap": found.reference.context["warm_up"]["reached_cap"],
            "conditions": found.reference.context["conditions"],
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares and the noise floor; relative differences and seconds."""
    low, mid, high = np.log([[row["ratio"][k] for k in ("low", "mid", "high")] for row in rows]).T
    return {
        "comparisons": len(rows),
        "limit": limit(len(rows)),
        "differ": sum(row["verdict"] != Verdict.UNDECIDED.value for row in rows),
        "exclude_1": int(((low > 0) | (high < 0)).sum()),
        "reached_cap": sum(row["reached_cap"] for row in rows),
        "seconds": float(np.median([row["seconds"] for row in rows])),
        "blocks": float(np.median([row["blocks"] for row in rows])),
        "median_s": float(np.median([row["median_s"] for row in rows])),
        **_spread("half_width", np.expm1((high - low) / 2)),
        **_spread("from_1", np.expm1(abs(mid))),
        **_spread("furthest", np.array([row["furthest"] for row in rows])),
    }


def _spread(name: str, values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    return {
        f"{name}_median": float(np.median(values)),
        f"{name}_95": float(np.quantile(values, 0.95)),
    }


def exceeds(result: Mapping[str, Any], one_session: bool) -> bool:
    """Return whether more comparisons seem to differ than the limit allows.

    Where nothing can differ no floor is due: with one, hardly any procedure would fail.
    """
    return bool(result["exclude_1" if one_session else "differ"] > result["limit"])


def read_log(path: Path | None, options: CompareOptions) -> list[dict[str, Any]]:
    """Return the comparisons of an earlier run with the same options, which leads the file."""
    if path is None or not path.exists():
        return []
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    if head != _head(options):
        raise SystemExit(f"{path} was written with other options; give another file")
    return [json.loads(line) for line in lines]


def _head(options: CompareOptions) -> str:
    return f"# {options!r}"


def main() -> int:
    """Print the figures; return 1 if more comparisons differ than the binomial limit allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="a float ONNX model")
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--floor", type=float, default=CompareOptions().floor)
    parser.add_argument("--one-session", action="store_true", help="time one against itself")
    parser.add_argument("--log", type=Path, help="append each comparison, and go on from there")
    parser.add_argument("--quick", action="store_true", help="5 comparisons of 6 short turns")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    options = replace(CompareOptions(), floor=arguments.floor)
    count = arguments.comparisons
    if arguments.quick:
        options = replace(options, looks=(6,), turns=TurnOptions(turn_s=1e-3))
        count = 5
    rows = read_log(arguments.log, options)[:count]
    for row in compared(arguments.model, range(len(rows), count), options, arguments.one_session):
        if arguments.log is not None:
            new = not arguments.log.exists()
            with arguments.log.open("a", encoding="utf-8") as file:
                file.write((_head(options) + "\n") * new + json.dumps(row) + "\n")
        rows.append(row)
    if len({(row["model"], row["sessions"]) for row in rows}) > 1:
        raise SystemExit(f"{arguments.log} holds comparisons of others; give another file")
    result = summary(rows)
    # Five comparisons of a few milliseconds show that the script runs, not how the machine is.
    exceeded = not arguments.quick and exceeds(result, arguments.one_session)
    if arguments.json:
        print(json.dumps({**result, "floor": options.floor, "exceeded": exceeded}))
    else:
        _print(result, rows[-1], options.floor, exceeded)
    return int(exceeded)


def _print(
    result: Mapping[str, Any], last: Mapping[str, Any], floor: float, exceeded: bool
) -> None:
    count, median = result["comparisons"], result["seconds"]
    print(f"{count} A/A comparisons, each of {last['sessions']} fresh session(s)")
    print(f"one run took             {result['median_s'] * 1e3:6.2f} ms")
    print(f"one comparison took      {median:6.2f} s and {result['blocks']:.0f} blocks (medians)")
    for key, what in (("differ", f"differ by a floor of {floor:.1%}"), ("exclude_1", "exclude 1")):
        print(f"{what:24} {result[key]:6} = {result[key] / count:.1%}")
    print(
        f"limit                    {result['limit']:6} ({SHARE:.0%} of {count}, binomial, "
        f"{CONFIDENCE:.0%}): {'EXCEEDED' if exceeded else 'kept'}"
    )
    print(f"warm-up reached its cap  {result['reached_cap']:6}")
    print(f"noise floor of a comparison of {median:.2g} s, without the floor above:")
    for key, what in (
        ("half_width", "half width of interval"),
        ("from_1", "ratio from 1"),
        ("furthest", "interval reaches from 1"),
    ):
        print(
            f"  {what:24} median {result[key + '_median']:.2%}   "
            f"95th percentile {result[key + '_95']:.2%}"
        )
    for line in advice(Conditions.from_dict(last["conditions"])):
        print(f"advice: {line}")


if __name__ == "__main__":
    sys.exit(main())
