"""The one error type of the data side: what is wrong, where, and what to do about it."""


class DataError(ValueError):
    """Bad input data, schema or dataset directory.

    The message is one line for a person: what is wrong, where (file, column or shard, row), what to do. The command
    line prints it as it stands, without a traceback.
    """
