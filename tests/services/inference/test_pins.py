"""services.inference.pins: which version of a model is asked for."""

from __future__ import annotations

import pytest

from contracts.errors import RecipeError
from services.inference import settings
from services.inference.pins import Pin, parse


def test_a_model_is_pinned_by_alias_or_number_and_follows_its_champion_otherwise() -> None:
    found = parse(" mnist@staging, fashion:3 ,digits,,a@b@blue-1")
    assert found == {"mnist": Pin("staging"), "fashion": Pin(version="3"), "digits": Pin(), "a@b": Pin("blue-1")}
    assert [str(pin) for pin in found.values()] == ["@staging", ":3", "@champion", "@blue-1"]


@pytest.mark.parametrize(
    "item", ["a@", "@b", "a:", ":3", "a:0", "a:x", "a:3:4", "a@la test", "a@latest", "a@v3", "a:3@b"]
)
def test_what_cannot_be_a_pin_is_refused_with_the_forms_that_can(item: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse(f"good,{item}")
    assert repr(item) in refused.value.message
    assert "NAME@ALIAS" in refused.value.message


def test_a_model_cannot_be_served_in_two_versions() -> None:
    with pytest.raises(RecipeError, match="names a@staging and a:3"):
        parse("a@staging,a:3")


def test_the_default_model_is_named_without_a_version() -> None:
    read = settings.read({"STRIDE_MODEL": "a", "STRIDE_MODELS": "b,a:2"})
    assert (read.names, read.pin("a"), read.pin("b")) == (("a", "b"), Pin(version="2"), Pin())
    with pytest.raises(RecipeError, match="STRIDE_MODEL is 'a:2'; give the model's name alone"):
        settings.read({"STRIDE_MODEL": "a:2"})
