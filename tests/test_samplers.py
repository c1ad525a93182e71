"""The contract of every sampler: new, valid, repeatable proposals that heed constraints and what was found before."""

import math
import random
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

from evit_nas.choices import FixedTrial
from evit_nas.errors import UsageError
from evit_nas.network.cost import cost
from evit_nas.searching.samplers import GENERATION, SAMPLERS, Nsga2, Nsga3, Turn, make
from evit_nas.space import SearchSpace
from evit_nas.yamlio import validate

STAGE = {"width": 64, "depth": 1, "heads": 2}
SPACE = validate(
    SearchSpace,
    {
        "image_size": 64,
        "num_classes": 10,
        "stages": [
            STAGE | {"width": [16, 32, 48, 64], "mixer": ["softmax", "linear"], "q_kernels": [3, [5, 3]]},
            STAGE | {"width": {"from": 32, "to": 96, "step": 16}, "ffn_ratio": {"from": 1.0, "to": 3.0, "step": 0.5}},
            STAGE | {"width": [64, 80, 128], "depth": {"from": 1, "to": 4}, "cascade": [True, False]},
        ],
    },
    "space",
)
LEARNING = sorted(set(SAMPLERS) - {"random", "qmc"})  # those whose proposals depend on what was found
WARM = 2 * GENERATION + 3  # two whole generations and the beginning of a third


def sizes(arch):
    """Two objectives in conflict: parameters up, MACs down; and a limit on the depth of the network."""
    size = cost(arch)
    return (math.log(size.params), math.log(size.macs)), {"depth": size.depth / 45 - 1}


def search(name, study, total, judge=sizes, seed=0, space=SPACE):
    """Takes the study on to `total` trials as a search does; a judge that answers None has failed."""
    while (told := len(study.get_trials(deepcopy=False))) < total or has_waiting(study):
        study.sampler = make(name, seed=seed, told=told, space=space)
        trial = study.ask()
        arch = space.suggest(trial)
        trial.set_user_attr("key", arch.key)
        values, constraints = judge(arch)
        for limit, beyond in constraints.items():
            trial.set_constraint(limit, beyond)
        study.tell(trial, values, state=None if values else TrialState.FAIL)
    return study


def has_waiting(study):
    return bool(study.get_trials(deepcopy=False, states=[TrialState.WAITING]))


def new_study(directions=("maximize", "minimize")):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=directions)


def warm_study(judge=sizes, directions=("maximize", "minimize")):
    return search("random", new_study(directions), WARM, judge)


def continued(study, name, more, judge=sizes, seed=0):
    """The trials of a copy of the study that `name` has taken on by `more`."""
    copy = new_study(study.directions)
    copy.add_trials(study.get_trials())
    return search(name, copy, len(study.trials) + more, judge, seed).get_trials()[len(study.trials) :]


def keys(trials):
    return [trial.user_attrs["key"] for trial in trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_proposal_is_a_new_architecture_of_the_space(name):
    warm = warm_study()
    proposed = continued(warm, name, 6)
    archs = [SPACE.suggest(FixedTrial(trial.params)) for trial in proposed]
    assert [arch.key for arch in archs] == keys(proposed)
    assert all(arch in SPACE for arch in archs)
    assert len({*keys(warm.trials), *keys(proposed)}) == WARM + 6


def test_what_is_new_is_proposed_as_optuna_would():
    warm = warm_study()
    proposed = continued(warm, "tpe", 1)[0]
    bare = new_study()
    bare.add_trials(warm.trials)
    bare.sampler = optuna.samplers.TPESampler(seed=Turn(0, WARM).own_seed, multivariate=True, n_startup_trials=0)
    trial = bare.ask()
    SPACE.suggest(trial)
    assert trial.params == proposed.params


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_can_start_from_nothing(name):
    trials = search(name, new_study(), 12).trials
    assert len(set(keys(trials))) == 12


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_same_proposals_other_seed_other_proposals(name):
    first, again, other = (keys(search(name, new_study(), 5, seed=seed).trials) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_asked_for_together_are_different_architectures(name):
    study = warm_study()
    for told in range(WARM, WARM + 4):
        study.sampler = make(name, seed=0, told=told, space=SPACE)
        trial = study.ask()
        trial.set_user_attr("key", SPACE.suggest(trial).key)
    assert len(set(keys(study.trials))) == WARM + 4


def test_no_two_proposals_of_neighbouring_searches_share_a_seed():
    turns = [Turn(seed, told) for seed in range(5) for told in range(500)]
    assert len({turn.own_seed for turn in turns}) == len(turns)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_search_proposes_what_an_uninterrupted_one_does(name, tmp_path):
    """All that is left of the interrupted search is its record in a database, as in a run folder."""
    more = 4 if name == "gp" else GENERATION
    whole = search(name, warm_study(), WARM + more)
    interrupted = search(name, warm_study(), WARM + 2)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    record = optuna.create_study(storage=storage, directions=whole.directions)
    record.add_trials(interrupted.trials)
    resumed = new_study()
    resumed.add_trials(record.get_trials())
    storage.engine.dispose()
    search(name, resumed, WARM + more)
    assert keys(resumed.trials) == keys(whole.trials)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]


def small_but_heavy(arch):
    """Both objectives pull away from where the limit is kept: parameters and MACs down, many parameters wanted."""
    size = cost(arch)
    return (-math.log(size.params), math.log(size.macs)), {"fine": -1.0, "heavy": 1 - size.params / 800_000}


def share_kept(trials):
    return sum(all(beyond <= 0 for beyond in trial.constraints.values()) for trial in trials) / len(trials)


@pytest.mark.parametrize("name", LEARNING)
def test_constraints_are_heeded_even_against_the_objectives(name):
    warm = warm_study(small_but_heavy)
    chance = share_kept(continued(warm, "random", 40, small_but_heavy))
    assert share_kept(continued(warm, name, 6 if name == "gp" else 40, small_but_heavy)) > 2 * chance > 0


@pytest.mark.parametrize("how", ["added", "enqueued"])
@pytest.mark.parametrize("name", LEARNING)
def test_what_was_found_before_the_search_is_learnt_from(name, how):
    """Linear attention and the largest depth beat everything else in both objectives, and only warm starts say so."""

    def judge(arch):
        good = 2 * (arch.stages[0].mixer == "linear") + 2 * (arch.stages[2].depth == 4)
        noise = random.Random(arch.key).random()
        return (good + noise, -good + noise), {"none": -1.0}

    study, rng = new_study(), random.Random(0)
    archs = {arch.key: arch for arch in (SPACE.sample(rng) for _ in range(WARM + 1))}
    for key, arch in archs.items():
        params = SPACE.params(arch)
        if how == "enqueued":
            study.enqueue_trial(params)
        else:
            asked = optuna.trial.FixedTrial(params)
            SPACE.suggest(asked)
            values, limits = judge(arch)
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=asked.distributions,
                    values=values,
                    constraints=limits,
                    user_attrs={"key": key},
                )
            )
    search(name, study, len(archs), judge)
    more, seeds = (5, range(1)) if name == "gp" else (GENERATION - 3, range(4))  # no generation learns from its own
    proposed = [trial for seed in seeds for trial in continued(study, name, more, judge, seed)]
    best = [t for t in proposed if t.params["stage1.mixer"] == "linear" and t.params["stage3.depth"] == 4]
    assert len(best) > len(proposed) / 4  # twice what chance gives


@pytest.mark.filterwarnings("ignore:The value nan", "ignore:Clip non-finite values")
@pytest.mark.parametrize("name", SAMPLERS)
def test_failed_trials_and_values_without_measure_are_survived(name):
    def judge(arch):
        values, limits = sizes(arch)
        kind = int(arch.key, 16) % 4
        return {0: None, 1: (math.nan, values[1]), 2: (-math.inf, values[1])}.get(kind, values), limits

    warm = warm_study(judge)
    assert {trial.state for trial in warm.trials} == {TrialState.FAIL, TrialState.COMPLETE}
    proposed = continued(warm, name, 4, judge)
    assert len({*keys(warm.trials), *keys(proposed)}) == WARM + 4  # nor is a failure tried again


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_whose_trials_all_failed_goes_on(name):
    trials = search(name, new_study(), 8, lambda arch: (None, {})).trials
    assert len(set(keys(trials))) == 8


@pytest.mark.parametrize("name", SAMPLERS)
def test_three_objectives_are_as_good_as_two(name):
    def judge(arch):
        (params, macs), limits = sizes(arch)
        return (params, macs, cost(arch).depth), limits

    directions = ("maximize", "minimize", "minimize")
    warm = warm_study(judge, directions)
    assert len(set(keys(warm.trials + continued(warm, name, 3, judge)))) == WARM + 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_small_space_is_used_up_before_anything_is_repeated(name):
    stages = [STAGE | {"width": [16, 32], "depth": [1, 2]}, STAGE | {"depth": [1, 2, 3]}, STAGE]
    space = validate(SearchSpace, {"image_size": 64, "num_classes": 10, "stages": stages}, "space")
    trials = search(name, new_study(), space.size, space=space).trials
    assert len(set(keys(trials))) == space.size == 12


def test_a_space_that_is_used_up_repeats_instead_of_hanging():
    stages = [STAGE | {"width": [16, 32]}, STAGE, STAGE]
    space = validate(SearchSpace, {"image_size": 64, "num_classes": 10, "stages": stages}, "space")
    trials = search("tpe", new_study(), 5, space=space).trials
    assert len(set(keys(trials))) == 2


def test_an_unknown_sampler_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"'nsga'. Did you mean 'nsga\d'\? Known: auto, evolution, gp, nsga2"):
        make("nsga", seed=0, told=0, space=SPACE)


def made(names):
    """A fixture that makes samplers anew, as Optuna's contract wants them; a Gaussian process takes its time."""

    @pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name == "gp" else ()) for name in names])
    def sampler(self, request):
        return lambda: SAMPLERS[request.param](Turn(seed=0, told=0))

    return sampler


@pytest.mark.filterwarnings("ignore")
class TestOptunasContract(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    """What Optuna asks of every sampler: it answers what it is asked, in bounds, whatever the record holds."""

    sampler = made(SAMPLERS)


@pytest.mark.filterwarnings("ignore")
class TestOptunasContractOfThoseThatAnswerAllTogether(RelativeSamplerTestCase):
    """The others leave some or all dimensions to be sampled one by one, a Gaussian process in its first ten trials."""

    sampler = made(["tpe", "qmc"])


def test_evolution_leaves_alone_what_is_fixed():
    study = warm_study()
    fixed = {"stage1.width": study.trials[0].params["stage1.width"]}
    with pytest.warns(ExperimentalWarning):
        study.sampler = optuna.samplers.PartialFixedSampler(fixed, SAMPLERS["evolution"](Turn(0, WARM)))
    for _ in range(10):
        trial = study.ask()
        SPACE.suggest(trial)
        assert trial.params["stage1.width"] == fixed["stage1.width"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", [partial(Nsga2, population_size=GENERATION), Nsga3])
def test_a_long_search_does_not_exhaust_the_stack(kind):
    """Each generation's parents are chosen from those of the generation before."""
    sampler = kind(seed=0)
    study = optuna.create_study(directions=["maximize"] * 3, sampler=sampler)
    distributions = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study.add_trials(
        optuna.trial.create_trial(params={"x": x}, distributions=distributions, values=[x, 1 - x, x * x])
        for x in np.random.default_rng(0).random(400 * GENERATION)
    )
    assert len(sampler.get_parent_population(study, 400)) == GENERATION
