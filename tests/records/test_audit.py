"""What a record of an audit answers about its results."""

import pytest
from fixtures.reports import audit_of

from diffleak.errors import UserError


def test_rates_of_a_result_are_had_by_the_rate_they_are_at_and_another_is_refused_with_those_that_there_are():
    (result, *_) = audit_of({"sima": 1.0}, 200)[0].results
    assert [result.tpr(rate.fpr) for rate in result.tpr_at_fpr] == list(result.tpr_at_fpr)
    assert [result.tnr(rate.fnr) for rate in result.tnr_at_fnr] == list(result.tnr_at_fnr)
    assert result.tpr(0.1 * 0.1).fpr == result.tnr(0.1 * 0.1).fnr == 0.01
    with pytest.raises(UserError, match=r"the false-positive rate must be one that sima has, 0.1, 0.01, 0.001; got 0.05"):
        result.tpr(0.05)
    with pytest.raises(UserError, match=r"the false-negative rate must be one that sima has, 0.1, 0.01, 0.001; got 1"):
        result.tnr(1.0)


def test_a_rate_that_a_record_of_other_rates_lacks_is_null_with_its_reason():
    (result, *_) = audit_of({"sima": 1.0}, 200)[0].results
    fewer = result.model_copy(update={"tpr_at_fpr": result.tpr_at_fpr[1:], "tnr_at_fnr": ()})
    for missing in (fewer.tpr(0.1), fewer.tnr(0.1)):
        assert (missing.value, missing.support, missing.reason) == (None, "none", "not in the record")
    assert fewer.tpr(0.1).fpr == fewer.tnr(0.1).fnr == 0.1 and fewer.tpr(0.01) == result.tpr(0.01)
    with pytest.raises(UserError, match=r"must be one that sima has, none; got 0.05"):
        fewer.tnr(0.05)
