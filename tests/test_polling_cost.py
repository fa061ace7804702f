"""What polling costs, and how fresh it keeps what is known: a benchmark's measurement, in small."""

import pytest

from benchmarks.cadence import Cost, measure


@pytest.fixture(scope="module")
def cost() -> Cost:
    """Ten accounts with 35 Regions each, for six virtual hours."""
    return measure(accounts=10, hours=6)


def test_it_takes_at_most_15_percent_of_the_calls_of_a_fixed_interval(cost: Cost) -> None:
    """With one target in twenty active at any time; and it does look at them."""
    assert 0.03 < cost.active_share < 0.07
    assert 0.05 < cost.calls / cost.fixed_calls <= 0.15


def test_active_targets_are_as_fresh_as_at_a_fixed_interval(cost: Cost) -> None:
    """From the first look that sees their import."""
    assert cost.active_age.median <= 35
    assert cost.active_age.maximum <= 65


def test_nothing_is_older_than_the_idle_interval(cost: Cost) -> None:
    """Neither what is known of an idle target, nor what is not yet known of a new import."""
    assert cost.idle_age.median <= 15 * 60 / 2 + 30
    assert cost.idle_age.maximum <= 15 * 60 + 10
    assert cost.first_seen.maximum <= 15 * 60 + 10
