"""The helpers of the tests fail when they must."""

import warnings

import pytest

from helpers.raises import raises, warns


@pytest.mark.parametrize("fact", ["gene", "g1", "adata.X", 13, 0.5, 2000, "obs['a']"])
def test_named_facts_are_found(fact):
    with raises(ValueError, naming=[fact]):
        raise ValueError("adata.X has 0.5 in cell 'c13', gene 'g1': 13 of 2,000 (obs['a'])")


@pytest.mark.parametrize("fact", ["genes", "g", 3, 5, 1.5, 200, "obs['b']"])
def test_parts_of_words_and_numbers_are_not_facts(fact):
    with pytest.raises(AssertionError), raises(ValueError, naming=[fact]):
        raise ValueError("adata.X has 0.5 in cell 'c13', gene 'g1': 13 of 2,000 (obs['a'])")


def test_another_error_is_not_taken_for_the_one_expected():
    with pytest.raises(KeyError), raises(ValueError, naming=["g1"]):
        raise KeyError("g1")


def test_one_warning_must_name_all_facts():
    def warn_twice():
        warnings.warn("gene g1", stacklevel=1)
        warnings.warn("cell c1", stacklevel=1)

    with warns(naming=["g1"]):
        warn_twice()
    with pytest.raises(AssertionError), warns(naming=["g1", "c1"]):
        warn_twice()
