"""Every search method keeps the contract that ships in the package."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from search.differentiable import Differentiable, DifferentiableConfig
from search.methods import METHODS, MethodSettings, make_searcher
from search.reinforce import ReinforceConfig
from search.searcher import Searcher
from search.testing import WITHOUT_START, SearcherContract


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TestRandom(SearcherContract):
    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("random", settings)


class TestNeighbourhood(SearcherContract):
    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("neighbourhood", settings)


class TestEvolution(SearcherContract):
    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("evolution", settings)


class TestBayesian(SearcherContract):
    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("bayesian", settings)


class TestDifferentiable(SearcherContract):
    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        quick = DifferentiableConfig(steps=20, between=2)
        return Differentiable(settings.start, settings.repair, quick)


class TestReinforce(SearcherContract):
    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        config = ReinforceConfig if settings.start is None else ReinforceConfig.warm
        agent = replace(config(episodes=60), hidden=8)
        return make_searcher("reinforce", replace(settings, agent=agent))


class TestExact(SearcherContract):
    exemptions = WITHOUT_START

    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("exact", settings)


class TestGreedy(SearcherContract):
    exemptions = WITHOUT_START

    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("greedy", settings)


class TestManual(SearcherContract):
    exemptions = WITHOUT_START

    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("manual", settings)


class TestUniform(SearcherContract):
    exemptions = WITHOUT_START

    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("uniform", settings)


class TestZeroShot(SearcherContract):
    exemptions: ClassVar = {
        **WITHOUT_START,
        "test_what_is_infeasible_as_measured_is_never_the_best": "it measures nothing",
    }

    @classmethod
    def searcher(cls, settings: MethodSettings) -> Searcher:
        return make_searcher("zero-shot", settings)


def test_every_method_is_under_contract():
    tested = {
        found.searcher(MethodSettings()).name
        for found in globals().values()
        if isinstance(found, type) and found.__name__.startswith("Test")
    }
    assert tested == set(METHODS)


def test_a_contract_test_is_exempted_with_a_reason_and_not_overridden():
    with pytest.raises(TypeError, match="not overridden"):
        type("Mine", (SearcherContract,), {"test_it_has_a_name": None})
    with pytest.raises(TypeError, match="do not exist"):
        type("Mine", (SearcherContract,), {"exemptions": {"test_nothing": "why"}})
    with pytest.raises(TypeError, match="needs its reason"):
        type("Mine", (SearcherContract,), {"exemptions": {"test_it_has_a_name": ""}})
