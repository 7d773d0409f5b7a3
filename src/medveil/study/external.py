"""Score a model on data that it never saw."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from medveil.data.sources import load
from medveil.data.subject import Dataset
from medveil.errors import ConfigError, GuaranteeError, LabelError
from medveil.evaluation.curves import Threshold
from medveil.study import record
from medveil.study.plan import External, Plan
from medveil.study.prepare import Prepared, TestSet
from medveil.study.scoring import Scorer
from medveil.training.arrays import to_arrays


def test_set(dataset: Dataset, plan: Plan, class_names: tuple[str, ...], input_shape: tuple[int, ...]) -> TestSet:
    """All subjects of ``dataset`` as a test set for a model with these classes and this input.

    Raises:
        ConfigError: another task, or images of another shape.
        LabelError: other classes.
    """
    if dataset.task != plan.task:
        raise ConfigError(
            "The data are for another task than the model's",
            got=dataset.task,
            expected=plan.task,
            remedy="choose data with the labels that the model was trained for",
        )
    if dataset.class_names != class_names:
        raise LabelError(
            "The data have other classes than the model",
            got=", ".join(dataset.class_names),
            expected=", ".join(class_names),
            remedy="name the classes in the data file as the model knows them, in the same order",
        )
    if dataset.example_shape != input_shape:
        raise ConfigError(
            "The images have another shape than the model's input",
            got=f"(channels, *spatial) = {dataset.example_shape}",
            expected=input_shape,
            remedy=f"add resize = {list(input_shape[1:])} to the data file if resizing is right for these images",
        )
    data = to_arrays(dataset.subjects, task=plan.task, num_classes=len(class_names))
    return TestSet(data, dataset.subjects, tuple(subject.attributes.get("site", "") for subject in dataset.subjects))


@dataclass(frozen=True, eq=False)
class ForeignTest:
    """An external test set, ready to be scored."""

    plan: External
    test: TestSet


def _check_foreign(dataset: Dataset, prepared: Prepared) -> None:
    """Refuse to publish exact scores of patients whom the claim covers."""
    if any(example.digest in prepared.seen for subject in dataset.subjects for example in subject.examples):
        raise GuaranteeError(
            "An external data set holds images that the model is trained on: their scores would have no noise",
            got=f"evaluation.external with {dataset.name}",
            expected="patients whom the privacy claim does not cover",
            remedy="remove it from evaluation.external",
        )


def load_external(plan: Plan, prepared: Prepared) -> tuple[ForeignTest, ...]:
    """Read every data set of ``evaluation.external``; done before training, so that a mistake costs nothing.

    Raises:
        DataError: one cannot be read.
        ConfigError: one does not fit the model.
        GuaranteeError: a privacy claim covers some of its images.
    """
    found = []
    for external in plan.evaluation.external:
        dataset = load(external.source, plan.data.preprocess, root=plan.data_root)
        if plan.privacy.dp is not None:
            _check_foreign(dataset, prepared)
        test = test_set(dataset, plan, prepared.dataset.class_names, prepared.input_shape)
        found.append(ForeignTest(external, test))
    return tuple(found)


def score_external(
    foreign: ForeignTest, scorer: Scorer, model: nn.Module, threshold: Threshold, own: dict[str, Any]
) -> dict[str, Any]:
    """One entry of the record's ``external`` part.

    Args:
        foreign: the test set.
        scorer: of the run.
        model: of the run.
        threshold: as the run fixed it.
        own: metrics on the run's own test set; ``fall`` is own minus foreign.
    """
    predictions = scorer.predict(model, foreign.test.data)
    result = scorer.score(predictions, foreign.test, threshold).to_json()
    return {
        "name": foreign.plan.name,
        "relation": foreign.plan.relation,
        "test": record.metrics_part(result, {}, {}),
        "num_subjects": len(foreign.test.subjects),
        "fall": {
            name: own[name]["value"] - estimate["value"]
            for name, estimate in result["metrics"].items()
            if estimate["value"] is not None and own.get(name, {}).get("value") is not None
        },
    }
