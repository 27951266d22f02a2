"""Evolution: optuna's NSGA-II, warm-started with the start and mutated copies of it."""

from dataclasses import dataclass

import numpy as np

from search.mutation import mutants
from search.problem import Problem
from search.proposing import Iterative
from search.studies import Study, require_optuna


@dataclass(frozen=True, eq=False)
class Evolution(Iterative):
    """A genetic algorithm over policies: uniform crossover, mutation, survival of the best.

    With a start, the first generation is the start and mutated copies of it; without, it is drawn
    at random. Equal policies enter no generation twice. Infeasible policies that are not repaired
    rank below all feasible ones, by violation.

    K. Deb, A. Pratap, S. Agarwal, T. Meyarivan, "A fast and elitist multiobjective genetic
    algorithm: NSGA-II", IEEE Trans. Evolutionary Computation 6(2), 2002; the implementation is
    optuna's.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired or rejected.
        population: policies of one generation.
        mutation_rate: chance that a decision of a copy of the start is drawn anew.
    """

    population: int = 20
    mutation_rate: float = 0.1
    name: str = "evolution"

    @property
    def batch(self) -> int:
        """See `search.proposing.Iterative`: a generation."""
        return self.population

    def proposer(self, problem: Problem, seed: int) -> Study:
        """See `search.proposing.Iterative`.

        Raises:
            QuantmeterError: if optuna is not installed.
        """
        require_optuna(self.name)
        from optuna.samplers import NSGAIISampler

        first = np.empty((0, len(problem.network.layers)), np.uint8)
        if self.start is not None:
            rng = np.random.default_rng(seed)
            first = mutants(problem, self.start, self.population - 1, rng, self.mutation_rate)
        return Study(problem, NSGAIISampler(population_size=self.population, seed=seed), first)
