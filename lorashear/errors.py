"""The one exception for what a user can put right."""


class LorashearError(Exception):
    """The request or the input is wrong.

    Its text is one sentence: which input, which axis or tensor, what was found, what to do. The command line prints
    it alone and leaves with exit code 2; any other exception is a fault of ours.
    """
