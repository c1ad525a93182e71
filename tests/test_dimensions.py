"""A dimension of the space is one everywhere: what forgets a field of an architecture is found out here.

`test_every_field_is_tried` (test_arch.py) has another value for every field there is.
"""

import pytest

from evit_nas.accuracy.features import code
from evit_nas.arch import StageConfig
from evit_nas.latency.operators import operators
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.space import SearchSpace, StageSpace
from tests.test_arch import M4, OTHER_STAGE, OTHER_TOP, changed

OF_THE_TASK = ("image_size", "in_channels", "num_classes")  # a score is told them by the regime
OTHERS = {f"stage {field}": changed(M4, 1, **{field: value}) for field, value in OTHER_STAGE.items()}
OTHERS |= {field: changed(M4, **{field: value}) for field, value in OTHER_TOP.items() if field != "stages"}


@pytest.mark.parametrize("field", OTHERS)
def test_predicted_latency_follows_it(field):
    assert operators(OTHERS[field]) != operators(M4)


@pytest.mark.parametrize("field", [field for field in OTHERS if field not in OF_THE_TASK])
def test_the_predicted_score_follows_it(field):
    assert code(OTHERS[field]) != code(M4)


@pytest.mark.parametrize("field", OTHERS)
def test_what_is_deployed_follows_it(field):
    assert build_onnx(OTHERS[field]).SerializeToString() != build_onnx(M4).SerializeToString()


def test_a_search_can_choose_it():
    assert set(StageSpace.model_fields) == set(StageConfig.model_fields)
    assert set(SearchSpace.model_fields) == set(OTHER_TOP)
