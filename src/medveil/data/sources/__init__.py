"""Sources: every way images come in, one file a kind."""

from medveil.data.sources.load import AnySource, DataConfig, load, read_data_file

__all__ = ["AnySource", "DataConfig", "load", "read_data_file"]
