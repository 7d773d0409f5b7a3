"""From a plan's data table to sites: nobody stands in two places, and the pool is all sites together."""

import numpy as np
import pytest
import torch

from medveil.data.sources import load
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare

PLAN = """
name = "dealt"
task = "classification"
seed = 5
[data]
partition = { kind = "dirichlet", sites = 3, alpha = 1.0 }
splits = { kind = "random", test = 0.25, validation = 0.2 }
[data.source]
kind = "phantom"
subjects = 90
size = [16, 16]
repeated = 0.4
[model]
kind = "cnn"
[federation]
rounds = 1
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return lambda *overrides: load_plan(path, overrides)


def _images(data):
    """Every image as bytes, in order."""
    return [image.numpy().tobytes() for image in data.images]


def _owners(plan):
    """Subject id and label by image, as the source has them."""
    dataset = load(plan.data.source, plan.data.preprocess, root=plan.data_root)
    return {
        example.image.tobytes(): (subject.subject_id, example.target)
        for subject in dataset.subjects
        for example in subject.examples
    }


def test_every_image_stands_in_one_place_and_every_patient_in_one_split(plan):
    prepared, owners = prepare(plan()), _owners(plan())
    places = [site.train for site in prepared.sites] + [site.validation for site in prepared.sites if site.validation]
    places.append(prepared.test.data)
    images = [image for place in places for image in _images(place)]
    assert sorted(images) == sorted(owners)
    patients = [{owners[image][0] for image in _images(place)} for place in places]
    assert sum(len(part) for part in patients) == len(set().union(*patients)) == 90


def test_targets_and_subjects_belong_to_their_images(plan):
    prepared, owners = prepare(plan()), _owners(plan())
    for data in (*(site.train for site in prepared.sites), prepared.test.data, prepared.pool().train):
        known = [owners[image] for image in _images(data)]
        assert data.targets.tolist() == [label for _, label in known]
        pairs = set(zip(data.subject.tolist(), [patient for patient, _ in known], strict=True))
        assert len(pairs) == data.num_subjects == len({patient for patient, _ in known})
    ids = [prepared.test.subjects[number].subject_id for number in prepared.test.data.subject]
    assert ids == [owners[image][0] for image in _images(prepared.test.data)]


def test_the_pool_is_all_sites_in_their_order(plan):
    prepared = prepare(plan())
    pool = prepared.pool()
    assert _images(pool.train) == [image for site in prepared.sites for image in _images(site.train)]
    assert _images(pool.validation) == [image for site in prepared.sites for image in _images(site.validation)]
    assert torch.equal(pool.train.targets, torch.cat([site.train.targets for site in prepared.sites]))
    for name in ("volume", "position"):
        together = np.concatenate([getattr(site.train, name) for site in prepared.sites])
        np.testing.assert_array_equal(getattr(pool.train, name), together)


def test_labels_are_counted_per_site(plan):
    prepared = prepare(plan())
    for site in prepared.sites:
        ones = int(site.train.targets.sum())
        assert prepared.site_labels[site.name] == {"clear": len(site.train) - ones, "opacity": ones}


@pytest.mark.parametrize(
    "override",
    ["data.source.seed=1", "seed=6", "data.splits.test=0.3", "data.partition.alpha=0.5", "data.source.subjects=91"],
)
def test_the_fingerprint_changes_with_the_data_and_their_places(plan, override):
    first = prepare(plan()).fingerprint
    assert prepare(plan()).fingerprint == first
    assert prepare(plan("name=other", "federation.rounds=7")).fingerprint == first
    assert prepare(plan(override)).fingerprint != first


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("performance.workers=3", True),
        ("performance.eval_batch_size=2", True),
        ("training.amp='bf16'", False),
        ("training.batch_size=63", False),
        ("federation.weighting='equal'", False),
        ("evaluation.threshold=0.5", False),
        ("privacy.stages=[{kind='norm_bound', l2_norm=1.0}]", False),
        ("references.central=false", False),
        ("data.source.seed=1", False),
    ],
)
def test_a_plan_s_digest_holds_all_that_changes_a_result(plan, override, same):
    assert (plan(override).digest() == plan().digest()) == same
