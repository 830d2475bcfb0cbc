"""What can be wrong with the data that a detector is to be measured on."""


class EvaluationDataError(Exception):
    """The data cannot be used; the sentence names the file and, where there is one, the line."""
