from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.training import model_card, scores
from services.training.data.dataset import Dataset, Skipped


def _card(recipe: Any, dataset: Dataset, probabilities: Any, **facts: str) -> str:
    truth = dataset.test.labels
    return model_card.render(
        "r" * 32,
        recipe=recipe,
        dataset=dataset,
        results=scores.score(truth, probabilities),
        per_class=scores.per_class(truth, probabilities, dataset.labels),
        facts=facts,
    )


def test_it_says_what_it_is_how_well_it_does_on_what_and_how_to_use_it(
    make_recipe: Any, make_dataset: Any, answers: Any
) -> None:
    recipe = make_recipe(description="Three kinds.", published={"test_accuracy": 0.95, "source": "a course"})
    dataset = make_dataset()
    card = _card(recipe, dataset, answers(dataset), device="cpu (no CUDA device)", images_per_second="1,234")
    for part in (
        "# tiny\n\nThree kinds.",
        "**91.67%** of 12 test images",
        "Recipe after: a course",
        "| test accuracy | 0.9167 | 0.9500 |",
        "| class 2 | 1.000 | 1.000 | 1.000 | 4 |",
        "| device | cpu (no CUDA device) |",
        "| images per second | 1,234 |",
        "| train | 18 | 6 |",
        "`f1f1f1f1f1f1f1f1`",
        "grayscale and stretched to 8 x 8 pixels",
        "stride ship tiny",
        "/v1/predict",
    ):
        assert part in card


def test_images_in_two_classes_are_told(make_recipe: Any, make_dataset: Any, answers: Any) -> None:
    dataset = replace(make_dataset(), contradictions=2)
    assert "2 images in two classes at once" in _card(make_recipe(), dataset, answers(dataset))


def test_skipped_files_and_overlap_are_told(make_recipe: Any, make_dataset: Any, answers: Any) -> None:
    skipped = tuple(Skipped(path=f"a/{index}.gif", reason="animated") for index in range(12))
    dataset = make_dataset(skipped=skipped, overlap=1)
    card = _card(make_recipe(), dataset, answers(dataset))
    assert "12 files left out:\n\n- `a/0.gif`: animated" in card
    assert "- and 2 more" in card
    assert "1 image with an identical one in the test split: kept" in card


def test_what_there_is_not_is_told_too(make_recipe: Any, make_dataset: Any, answers: Any) -> None:
    dataset = make_dataset()
    card = _card(make_recipe(), dataset, answers(dataset))
    assert "No file was left out." in card
    assert "No image has an identical one in the test split." in card
    assert "published" not in card


def test_a_hundred_classes_fit_into_the_note(make_recipe: Any, make_dataset: Any, answers: Any) -> None:
    dataset = make_dataset(classes=100)
    card = _card(make_recipe(), dataset, answers(dataset))
    assert "The 30 of 100 classes with the lowest F1" in card
    assert "| class 1 |" in card  # one of the two that the mistake concerns
    assert len(card) < 8000


def test_a_pipe_in_a_name_does_not_break_a_table(make_recipe: Any, make_dataset: Any, answers: Any) -> None:
    dataset = make_dataset()
    assert "| note | a\\|b |" in _card(make_recipe(), dataset, answers(dataset), note="a|b")
