"""The statuses, exit codes and stable codes that users and clients rely on."""

from __future__ import annotations

import pytest

from contracts import errors
from contracts.errors import StrideError


def _all(base: type[StrideError] = StrideError) -> list[type[StrideError]]:
    return [base, *(found for child in base.__subclasses__() for found in _all(child))]


# HTTP status and exit code of every class: DESIGN.md promises 1 for failed, 2 for refused, and one status a cause.
CONTRACT = {
    errors.StrideError: (500, 1, "internal_error"),
    errors.RecipeError: (422, 2, "invalid_recipe"),
    errors.DataError: (422, 1, "invalid_data"),
    errors.DeviceError: (503, 1, "device_unavailable"),
    errors.FitError: (500, 1, "fit_failed"),
    errors.Diverged: (500, 1, "fit_diverged"),
    errors.AlreadyFitting: (409, 2, "already_fitting"),
    errors.ExportError: (500, 1, "export_failed"),
    errors.BundleError: (500, 1, "invalid_bundle"),
    errors.RegistryError: (503, 1, "registry_unavailable"),
    errors.GateRefused: (409, 2, "gate_refused"),
    errors.RequestError: (422, 2, "invalid_request"),
    errors.NotFound: (404, 2, "not_found"),
    errors.MalformedBody: (400, 2, "malformed_body"),
    errors.MethodNotAllowed: (405, 2, "method_not_allowed"),
    errors.SlowBody: (408, 2, "slow_body"),
    errors.Unauthorized: (401, 2, "unauthorized"),
    errors.ImageError: (400, 2, "undecodable_image"),
    errors.NotAnImage: (415, 2, "not_an_image"),
    errors.TooLarge: (413, 2, "too_large"),
    errors.NoModel: (503, 1, "no_model"),
    errors.Overloaded: (429, 1, "overloaded"),
}


def test_every_error_class_has_the_status_exit_code_and_code_that_are_promised() -> None:
    # Only those of this module: other rooms may subclass them in tests.
    found = {kind: (kind.status, kind.exit_code, kind.code) for kind in _all() if kind.__module__ == "contracts.errors"}
    assert found == CONTRACT


def test_every_error_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in CONTRACT]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", CONTRACT)
def test_an_error_carries_its_message_and_stands_in_the_tree_of_the_docstring(kind: type[StrideError]) -> None:
    assert str(kind("one sentence.")) == kind("one sentence.").message == "one sentence."
    assert kind.__name__ in (errors.__doc__ or "")


def test_overloaded_says_when_to_come_back() -> None:
    assert errors.Overloaded("full.", retry_after_s=0.25).retry_after_s == 0.25
