"""The Regions that there are, as far as the installed botocore knows; read without its other parts."""

from collections.abc import Collection

from botocore.loaders import create_loader


def known_regions() -> Collection[str]:
    """Return the names of all Regions of all partitions, sorted."""
    partitions = create_loader().load_data("partitions")["partitions"]
    return sorted({name for partition in partitions for name in partition["regions"] if "global" not in name})
