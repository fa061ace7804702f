"""The names of Regions: botocore's data, and nothing of boto3, which would take longer to import."""

from botocore.loaders import create_loader


def known_regions() -> list[str]:
    """Return the names of all Regions of all partitions that the installed botocore knows, sorted."""
    partitions = create_loader().load_data("partitions")["partitions"]
    return sorted({name for partition in partitions for name in partition["regions"] if "global" not in name})
