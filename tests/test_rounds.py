"""Rounds: what a search proposes next is a function of the rounds before, whoever asks and whenever."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optuna
import pytest
from optuna.trial import FrozenTrial

from evit_nas.arch import ArchConfig
from evit_nas.choices import FixedTrial
from evit_nas.config import SearchSettings
from evit_nas.network.cost import cost
from evit_nas.searching.attributes import TrialAttributes
from evit_nas.searching.objectives import directions
from evit_nas.searching.rounds import TOGETHER, Round, Rounds, pool_of
from evit_nas.space import SearchSpace
from evit_nas.yamlio import validate

SPACE = SearchSpace.load("efficientvit-tiny")
POOL = 6


def settings_of(**changes: object) -> SearchSettings:
    target = {"budget_ms": 1.0}
    fields = {"space_name": "x", "space": SPACE, "targets": [target], "pool": POOL, "sampler": "evolution"}
    return validate(SearchSettings, fields | changes, "search")


def rounds_of(screening: Callable[..., list[ArchConfig]] | None = None, **changes: object) -> Rounds:
    settings = settings_of(**changes)
    return Rounds(settings, pool_of(settings), screening, ahead=0 if screening else 1)


def values_of(arch: ArchConfig) -> list[float]:
    return [float(sum(stage.width for stage in arch.stages)), cost(arch).macs / 1e6]


def new_record(trials: Sequence[FrozenTrial] = ()) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = optuna.create_study(directions=directions(settings_of()))
    record.add_trials(trials)
    return record


def evaluated(current: Round, record: optuna.Study, values: Callable[[ArchConfig], list[float] | None]) -> list[str]:
    """Puts on record what is not there yet; returns the keys of the whole round."""
    for trial, arch in current.proposals:
        if trial.number == len(record.trials):
            trial.set_constraint("latency_ms", 0.0)
            record.add_trial(current.finish(trial, values(arch)))
    return [arch.key for _, arch in current.proposals]


def followed(
    rounds: Rounds, record: optuna.Study, until: int, values: Callable[[ArchConfig], list[float] | None] = values_of
) -> list[list[str]]:
    """The keys of each round from the last one on record to round `until`."""
    first = max((trial.user_attrs["round"] for trial in record.trials), default=0)
    follow = rounds.follow(record, first, lambda arch: None)
    return [evaluated(next(follow), record, values) for _ in range(first, until + 1)]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "evolution"])
def test_the_rounds_after_any_trial_on_record_are_those_of_an_uninterrupted_search(sampler):
    rounds, record = rounds_of(sampler=sampler), new_record()
    whole = followed(rounds, record, until=5)
    trials = record.trials
    for told in range(1, len(trials), 4 if sampler == "tpe" else 1):
        first = trials[told - 1].user_attrs["round"]
        assert followed(rounds_of(sampler=sampler), new_record(trials[:told]), until=5) == whole[first:], told


def test_the_same_holds_where_a_screening_proposes():
    def screening(earlier, number, units):
        """Looks at what was found last, and finds nothing at times."""
        if number < 2:  # nothing can be predicted yet
            return []
        wanted = round(earlier[-1].values[1] * 1e6) % 7
        archs = [arch for arch, _ in pool_of(settings_of(seed=wanted, pool=4))]
        known = {trial.user_attrs["key"] for trial in earlier}
        return [] if number % 3 == 0 else [arch for arch in archs if arch.key not in known]

    rounds, record = rounds_of(screening), new_record()
    whole = followed(rounds, record, until=6)
    assert {trial.user_attrs["origin"] for trial in record.trials} == {"random", "screening", "evolution"}
    trials = record.trials
    for told in range(1, len(trials)):
        first = trials[told - 1].user_attrs["round"]
        assert followed(rounds_of(screening), new_record(trials[:told]), until=6) == whole[first:], told


def test_the_pool_comes_first_and_then_the_sampler_in_rounds_of_a_few():
    record = new_record()
    found = followed(rounds_of(), record, until=3)
    assert [len(keys) for keys in found] == [TOGETHER, POOL - TOGETHER, TOGETHER, TOGETHER]
    assert [key for keys in found[:2] for key in keys] == [arch.key for arch, _ in pool_of(settings_of())]
    assert [trial.user_attrs["origin"] for trial in record.trials] == ["random"] * POOL + ["evolution"] * 2 * TOGETHER


def test_every_proposal_is_new_and_carries_the_architecture_that_its_parameters_make():
    record = new_record()
    keys = [key for keys in followed(rounds_of(sampler="tpe"), record, until=6) for key in keys]
    assert len(keys) == len(set(keys))
    for trial, key in zip(record.trials, keys, strict=True):
        arch = ArchConfig.model_validate(trial.user_attrs["arch"])
        assert trial.user_attrs["key"] == arch.key == SPACE.suggest(FixedTrial(trial.params)).key == key


def test_a_round_does_not_wait_for_the_values_of_the_one_before_it():
    """So workers can begin with it; it knows what that one proposes all the same."""
    whole = followed(rounds_of(), new_record(), until=4)
    last = set(whole[3])
    upside_down = followed(
        rounds_of(),
        new_record(),
        until=4,
        values=lambda arch: [-v for v in values_of(arch)] if arch.key in last else values_of(arch),
    )
    assert upside_down == whole
    assert not set(whole[4]) & last


def test_the_next_round_but_one_depends_on_them():
    whole = followed(rounds_of(), new_record(), until=5)
    failing = followed(rounds_of(), new_record(), until=5, values=lambda a: values_of(a) if a.key in whole[0] else None)
    assert failing[:3] == whole[:3]
    assert failing[3:] != whole[3:]


def test_every_proposal_is_expected_a_round_before_it_is_evaluated():
    record, expected = new_record(), list[str]()
    follow = rounds_of().follow(record, 0, lambda arch: expected.append(arch.key))
    current = next(follow)
    assert expected[:TOGETHER] == [arch.key for _, arch in current.proposals]
    assert len(expected) == POOL
    evaluated(current, record, values_of)
    next(follow)
    assert len(expected) == POOL + TOGETHER


def test_what_is_on_record_is_not_expected_again_whether_it_failed_or_not():
    """A resumed search has a part of its first round on record; what failed there would be trained for nothing."""
    record = new_record()
    followed(rounds_of(), record, until=0, values=lambda arch: None)
    record, expected = new_record(record.trials[:2]), list[str]()
    current = next(rounds_of().follow(record, 0, lambda arch: expected.append(arch.key)))
    keys = [arch.key for _, arch in current.proposals]
    assert expected[: TOGETHER - 2] == keys[2:]
    assert not set(expected) & set(keys[:2])


def test_a_screening_sees_all_that_was_found_before():
    seen = []

    def screening(earlier, number, units):
        seen.append((number, [trial.number for trial in earlier]))
        return []

    followed(rounds_of(screening), new_record(), until=4)
    assert seen == [(0, []), (1, [*range(4)]), (2, [*range(6)]), (3, [*range(10)]), (4, [*range(14)])]


def test_a_screening_begins_as_soon_as_it_can_and_leaves_the_rest_of_the_pool():
    found = [arch for arch, _ in pool_of(settings_of(seed=1, pool=4))]
    record = new_record()

    def screening(earlier, number, units):
        """Can predict from the second round on, and finds nothing more after the third."""
        return {1: found[:2], 2: found[2:]}.get(number, [])

    rounds = followed(rounds_of(screening), record, until=4)
    pool = [arch.key for arch, _ in pool_of(settings_of())]
    assert rounds[:4] == [pool[:4], *[[arch.key for arch in some] for some in (found[:2], found[2:])], pool[4:]]
    assert [trial.user_attrs["origin"] for trial in record.trials[10:]] == ["evolution"] * TOGETHER


def test_the_papers_networks_come_before_a_screening():
    settings = settings_of(space=SearchSpace.load("efficientvit-224"))
    rounds = Rounds(settings, pool_of(settings), lambda *_: [settings.space.smallest()], ahead=0)
    record, origins = new_record(), list[str]()
    follow = rounds.follow(record, 0, lambda arch: None)
    for _ in range(3):
        current = next(follow)
        origins += [TrialAttributes(asked).origin or "" for asked, _ in current.proposals]
        evaluated(current, record, values_of)
    assert origins == ["m0", "m1", "m2", "m3", "m4", "m5", "screening"]


def test_where_candidates_are_cheap_the_sampler_knows_the_round_before():
    def followed_at_once(values=values_of):
        settings = settings_of()
        return followed(Rounds(settings, pool_of(settings), None, ahead=0), new_record(), until=4, values=values)

    whole = followed_at_once()
    last = set(whole[3])
    upside_down = followed_at_once(lambda arch: [-v if arch.key in last else v for v in values_of(arch)])
    assert upside_down[:4] == whole[:4]
    assert upside_down[4] != whole[4]


def test_a_failure_is_told_as_one():
    record = new_record()
    followed(rounds_of(), record, until=0, values=lambda arch: None)
    assert [trial.state.name for trial in record.trials] == ["FAIL"] * TOGETHER


def test_the_pool_is_the_papers_networks_that_the_space_holds_and_distinct_random_ones():
    pool = pool_of(settings_of(space=SearchSpace.load("efficientvit-224")))
    origins = [origin for _, origin in pool]
    presets = [origin for origin in origins if origin != "random"]
    assert presets == sorted(set(presets))
    assert presets
    assert origins.count("random") == POOL
    assert len({arch.key for arch, _ in pool}) == len(pool)
    assert pool == pool_of(settings_of(space=SearchSpace.load("efficientvit-224")))


def test_the_pool_of_a_space_with_few_networks_is_all_of_them():
    stage = {"width": [16, 32], "depth": 1, "heads": 1, "q_kernels": 3}
    fields = {"image_size": 64, "num_classes": 10, "stages": [stage, stage | {"width": 32}, stage | {"width": 32}]}
    assert len(pool_of(settings_of(space=validate(SearchSpace, fields, "space")))) == 2
