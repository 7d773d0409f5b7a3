"""Deal a plan's data out: one share a site, as if every hospital held its own."""

from dataclasses import replace
from pathlib import Path

from medveil.data.partition import partition_splits
from medveil.data.sources import load
from medveil.data.sources.share import ShareSource, write_share
from medveil.data.splits import split
from medveil.rng import Seeds
from medveil.study.folder import file_name
from medveil.study.plan import Plan
from medveil.study.prepare import check_site_names, check_task


def deal(plan: Plan, folder: Path) -> dict[str, ShareSource]:
    """Write every site's part of the plan's data into a file of its own.

    A training on the shares sees what a training in one process on the whole data set sees: the same subjects at the
    same sites in the same order.

    Args:
        plan: whose data, splits and partition.
        folder: a folder ``SITE/`` is made in it for every site, with ``images.npz``.

    Returns:
        Each site's source; its path is absolute.

    Raises:
        DataError: as the sources, splits and partitions raise it.
    """
    seeds = Seeds(plan.seed)
    dataset = load(plan.data.source, plan.data.preprocess, root=plan.data_root)
    check_task(plan, dataset)
    splits = split(dataset, plan.data.splits, seeds.child("split"))
    dealt = partition_splits(splits, plan.data.partition, seeds.child("partition"))
    check_site_names([site.name for site in dealt.train])
    parts = zip(dealt.train, dealt.validation, dealt.test, strict=True)
    shares = {}
    for train, validation, test in parts:
        own = tuple(
            replace(subject, split=name)
            for name, site in (("train", train), ("validation", validation), ("test", test))
            for subject in site.subjects
        )
        path = folder / file_name(train.name) / "images.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_share(path, dataset, own, plan.data.preprocess)
        source = plan.data.source
        shares[train.name] = ShareSource(
            path=path.resolve(), subject_rule=source.subject_rule, names_patients=source.names_patients
        )
    return shares
