"""The exception of a run that cannot go on."""


class TrainingError(RuntimeError):
    """Training stopped because a loss or gradient is not finite. One line: step, metric and record ids."""
